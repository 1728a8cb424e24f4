"""Chat templates of thinking models, reduced to what concerns thoughts: marks, switches and ends."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Thinker:
    """A family of models. tokens: control tokens added to its vocabulary; words: other added tokens. end: the
    end of a reply. tail: the end of prompts by default; without: if the model is told not to think. said: a
    reply with the thought `Hm.` and the answer `Anna.`; thought: one that ends within the thought.
    """

    template: str
    tokens: tuple[str, ...]
    end: str
    tail: str
    without: str
    said: str
    thought: str
    words: tuple[str, ...] = field(default=("<think>", "</think>"))


CHATML = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
_TURNS = (
    "{%- for message in messages %}\n"
    "    {%- if message.role == 'assistant' %}\n"
    "        {%- set said = message.content.split('</think>')[-1].lstrip('\\n') %}\n"
    "        {{- '<|im_start|>assistant\\n' + said + '<|im_end|>\\n' }}\n"
    "    {%- else %}\n"
    "        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}\n"
    "    {%- endif %}\n"
    "{%- endfor %}\n"
)
QWEN3 = _TURNS + (
    "{%- if add_generation_prompt %}\n"
    "    {{- '<|im_start|>assistant\\n' }}\n"
    "    {%- if enable_thinking is defined and enable_thinking is false %}\n"
    "        {{- '<think>\\n\\n</think>\\n\\n' }}\n"
    "    {%- endif %}\n"
    "{%- endif %}"
)
QWEN3_2507 = _TURNS + "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n<think>\\n' }}{%- endif %}"
R1 = (
    "{% set ns = namespace(system='') %}{% for message in messages %}{% if message['role'] == 'system' %}"
    "{% set ns.system = message['content'] %}{% endif %}{% endfor %}{{ bos_token }}{{ ns.system }}"
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '<\uff5cUser\uff5c>' + message['content'] }}{% elif message['role'] == 'assistant' %}"
    "{{ '<\uff5cAssistant\uff5c>' + message['content'].split('</think>')[-1] + eos_token }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<\uff5cAssistant\uff5c><think>\\n' }}{% endif %}"
)
MAGISTRAL = (
    "{%- set default = 'First think, as in [THINK]a draft[/THINK]then answer.' %}{{- bos_token }}"
    "{%- if messages[0]['role'] == 'system' %}{%- set told, turns = messages[0]['content'], messages[1:] %}"
    "{%- else %}{%- set told, turns = default, messages %}{%- endif %}"
    "{{- '[SYSTEM_PROMPT]' + told + '[/SYSTEM_PROMPT]' }}"
    "{%- for message in turns %}{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{- raise_exception('roles must alternate') }}{%- endif %}{%- if message['role'] == 'user' %}"
    "{{- '[INST]' + message['content'] + '[/INST]' }}{%- else %}{{- message['content'] + eos_token }}"
    "{%- endif %}{%- endfor %}"
)
GPT_OSS = (
    "{{- '<|start|>system<|message|>You are a model.\\nCurrent date: ' + strftime_now('%Y-%m-%d') }}"
    "{%- if reasoning_effort is not defined %}{%- set reasoning_effort = 'medium' %}{%- endif %}"
    "{{- '\\n\\nReasoning: ' + reasoning_effort + '\\n\\n# Valid channels: analysis, commentary, final.' }}"
    "{{- '<|end|>' }}{%- for message in messages %}{%- if message.role == 'assistant' %}"
    "{%- if '<|channel|>' in message.content %}{{- raise_exception('channels in a message') }}{%- endif %}"
    "{{- '<|start|>assistant<|channel|>final<|message|>' + message.content + '<|end|>' }}{%- else %}"
    "{{- '<|start|>' + message.role + '<|message|>' + message.content + '<|end|>' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt -%}<|start|>assistant{%- endif -%}"
)
GLM = (
    "[gMASK]<sop>\n{%- for m in messages %}\n"
    "{%- if m.role == 'user' -%}<|user|>\n{{ m.content }}"
    "{{- '/nothink' if (enable_thinking is defined and not enable_thinking) else '' -}}\n"
    "{%- elif m.role == 'assistant' -%}<|assistant|>\n<think></think>\n"
    "{{- m.content.split('</think>')[-1].strip() }}\n"
    "{%- else -%}<|system|>\n{{ m.content }}{%- endif -%}{%- endfor -%}\n"
    "{%- if add_generation_prompt -%}<|assistant|>"
    "{{- '\\n<think></think>' if (enable_thinking is defined and not enable_thinking) else '' -}}"
    "{%- endif -%}"
)
KIMI = (
    "{%- if messages[0]['role'] != 'system' -%}<|im_system|>system<|im_middle|>You are a model.<|im_end|>"
    "{%- endif -%}{%- for message in messages -%}"
    "<|im_{{ message['role'] }}|>{{ message['role'] }}<|im_middle|>"
    "{%- if message['role'] == 'assistant' -%}<think></think>{%- endif -%}{{ message['content'] }}<|im_end|>"
    "{%- endfor -%}{%- if add_generation_prompt -%}<|im_assistant|>assistant<|im_middle|>{%- endif -%}"
)
SMOLLM3 = (
    "{%- if enable_thinking is not defined -%}{%- set enable_thinking = true -%}{%- endif -%}"
    "{%- set mode = '/think' if enable_thinking else '/no_think' -%}{%- set turns = messages -%}"
    "{{- '<|im_start|>system\\n## Metadata\\n\\nToday Date: ' ~ strftime_now('%d %B %Y') ~ '\\n' -}}"
    "{{- 'Reasoning Mode: ' + mode + '\\n\\n' -}}{%- if messages[0].role == 'system' -%}"
    "{{- messages[0].content -}}{%- set turns = messages[1:] -%}{%- elif enable_thinking -%}"
    "{{- 'Use the format: <think> Thought section </think> Solution section.' -}}{%- endif -%}"
    "{{- '<|im_end|>\\n' -}}{%- for message in turns -%}"
    "{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}"
    "{{ '<|im_start|>assistant\\n' + ('' if enable_thinking else '<think>\\n\\n</think>\\n') }}{%- endif -%}"
)
_FINAL = "<|start|>assistant<|channel|>final<|message|>"
_PLAIN = "<think>\nHm.\n</think>\n\nAnna."

THINKERS = {
    "Qwen3": Thinker(
        QWEN3, CHATML, "<|im_end|>", "<|im_start|>assistant\n",
        "<|im_start|>assistant\n<think>\n\n</think>\n\n", _PLAIN, "<think>\nHm.",
    ),
    "Qwen3-Thinking-2507": Thinker(
        QWEN3_2507, CHATML, "<|im_end|>", "<|im_start|>assistant\n<think>\n",
        "<|im_start|>assistant\n<think>\n</think>\n\n", "Hm.\n</think>\n\nAnna.", "Hm.",
    ),
    "DeepSeek-R1-Distill": Thinker(
        R1, ("<\uff5cbegin\u2581of\u2581sentence\uff5c>", "<\uff5cend\u2581of\u2581sentence\uff5c>",
             "<\uff5cUser\uff5c>", "<\uff5cAssistant\uff5c>"),
        "<\uff5cend\u2581of\u2581sentence\uff5c>", "<\uff5cAssistant\uff5c><think>\n",
        "<\uff5cAssistant\uff5c><think>\n</think>\n\n", "Hm.\n</think>\n\nAnna.", "Hm.",
    ),
    "Magistral": Thinker(
        MAGISTRAL, ("<s>", "</s>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[THINK]",
                    "[/THINK]", "[TOOL_CALLS]"),
        "</s>", "[/INST]", "[/INST][THINK][/THINK]", "[THINK]Hm.[/THINK]Anna.", "[THINK]Hm.", (),
    ),
    "gpt-oss": Thinker(
        GPT_OSS, ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|constrain|>", "<|return|>",
                  "<|call|>"),
        "<|return|>", "<|start|>assistant", _FINAL,
        f"<|channel|>analysis<|message|>Hm.<|end|>{_FINAL}Anna.", "<|channel|>analysis<|message|>Hm.", (),
    ),
    "GLM-4.5": Thinker(
        GLM, ("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>",
              "<|endoftext|>"),
        "<|endoftext|>", "<|assistant|>", "<|assistant|>\n<think></think>",
        "\n<think>Hm.</think>\nAnna.", "\n<think>Hm.", ("<think>", "</think>", "/nothink"),
    ),
    "Kimi-K2-Thinking": Thinker(
        KIMI, ("<|im_user|>", "<|im_assistant|>", "<|im_system|>", "<|im_middle|>", "<|im_end|>", "[EOS]"),
        "<|im_end|>", "<|im_assistant|>assistant<|im_middle|>",
        "<|im_assistant|>assistant<|im_middle|><think>\n\n</think>\n\n", "<think>Hm.</think>Anna.",
        "<think>Hm.",
    ),
    "SmolLM3": Thinker(
        SMOLLM3, CHATML, "<|im_end|>", "<|im_start|>assistant\n",
        "<|im_start|>assistant\n<think>\n\n</think>\n", _PLAIN, "<think>\nHm.",
    ),
}  # fmt: skip
