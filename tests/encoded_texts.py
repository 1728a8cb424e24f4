"""A few sentences in each of many languages, and the encodings once used for them."""

from __future__ import annotations

TEXTS = {
    "arabic": (
        "الرقم السري للخزنة مكتوب في الصفحة الأخيرة من الدفتر. قال العمدة إن الساحة ستبقى مغلقة حتى يوم الجمعة.\n",
        ("cp1256", "iso8859_6"),
    ),
    "bulgarian": (
        "Паролата за сейфа е написана на последната страница. Кметът каза, че площадът ще остане затворен.\n",
        ("cp1251",),
    ),
    "chinese, simplified": (
        "保险箱的密码写在笔记本的最后一页。市长说，广场将关闭到星期五，因为要修理喷泉。\n",
        ("gb18030",),
    ),
    "chinese, traditional": (
        "保險箱的密碼寫在筆記本的最後一頁。市長說，廣場將關閉到星期五，因為要修理噴泉。\n",
        ("big5",),
    ),
    "croatian": (
        "Lozinka za sef zapisana je na zadnjoj stranici bilježnice. Gradonačelnik je rekao da će trg biti "
        "zatvoren do četvrtka, jer se popravlja česma i uređuje šetalište.\n",
        ("cp1250", "iso8859_2"),
    ),
    "czech": (
        "Heslo trezoru je napsáno na poslední stránce sešitu. Starosta řekl, že náměstí zůstane zavřené až do "
        "čtvrtka, protože se opravuje kašna.\n",
        ("cp1250", "iso8859_2", "cp852"),
    ),
    "danish": (
        "Koden til pengeskabet står på den sidste side i notesbogen. Borgmesteren sagde, at torvet forbliver "
        "lukket til på fredag, fordi de ødelagte rør skal udskiftes.\n",
        ("cp1252", "cp850"),
    ),
    "estonian": (
        "Seifi salasõna on kirjutatud märkmiku viimasele leheküljele. Linnapea ütles, et väljak jääb reedeni "
        "suletuks, sest purskkaevu parandatakse öösiti.\n",
        ("cp1257",),
    ),
    "finnish": (
        "Kassakaapin tunnusluku on kirjoitettu vihkon viimeiselle sivulle. Pormestari sanoi, että tori pysyy "
        "suljettuna perjantaihin, koska suihkulähdettä korjataan yöllä.\n",
        ("cp1252",),
    ),
    "french": (
        "Le code du coffre est écrit à la dernière page du carnet. Le maire a déclaré que la place resterait "
        "fermée jusqu’à vendredi, car la fontaine doit être réparée.\n",
        ("cp1252", "mac_roman"),
    ),
    "german": (
        "Die Zahl für den Tresor steht auf der letzten Seite des Heftes. Der Bürgermeister erklärte, der Platz "
        "bleibe bis Freitag geschlossen, weil die Straße am Brunnen ausgebessert werden müsse.\n",
        ("cp1252", "cp850", "mac_roman"),
    ),
    "greek": (
        "Ο κωδικός του χρηματοκιβωτίου είναι γραμμένος στην τελευταία σελίδα. Ο δήμαρχος είπε ότι η πλατεία "
        "θα μείνει κλειστή μέχρι την Παρασκευή.\n",
        ("cp1253", "iso8859_7"),
    ),
    "hebrew": (
        "הסיסמה של הכספת כתובה בעמוד האחרון של המחברת. ראש העיר אמר שהכיכר תישאר סגורה עד יום שישי.\n",
        ("cp1255", "iso8859_8"),
    ),
    "hungarian": (
        "A széf jelszava a füzet utolsó oldalán olvasható. A polgármester azt mondta, hogy a tér péntekig zárva "
        "marad, mert a szökőkutat javítják, és új járdát építenek.\n",
        ("cp1250", "iso8859_2"),
    ),
    "japanese": (
        "金庫の暗証番号は手帳の最後のページに書いてあります。市長は広場が金曜日まで閉鎖されると述べました。\n",
        ("cp932", "euc_jp", "iso2022_jp"),
    ),
    "korean": (
        "금고의 비밀번호는 공책의 마지막 쪽에 적혀 있다. 시장은 광장이 금요일까지 닫혀 있을 것이라고 말했다.\n",
        ("cp949", "iso2022_kr"),
    ),
    "lithuanian": (
        "Seifo slaptažodis užrašytas paskutiniame sąsiuvinio puslapyje. Meras sakė, kad aikštė bus uždaryta iki "
        "penktadienio, nes taisomas fontanas ir keičiamas šaligatvis.\n",
        ("cp1257", "iso8859_13"),
    ),
    "persian": (
        "رمز گاوصندوق در صفحه آخر دفتر نوشته شده است. شهردار گفت که ميدان تا روز جمعه بسته خواهد ماند.\n",
        ("cp1256",),
    ),
    "polish": (
        "Hasło do sejfu jest zapisane na ostatniej stronie zeszytu. Wójt powiedział, że łąka będzie zamknięta "
        "aż do piątku, ponieważ trwa naprawa źródła.\n",
        ("cp1250", "iso8859_2", "cp852"),
    ),
    "portuguese": (
        "A senha do cofre está escrita na última página do caderno. O prefeito disse que a praça não será "
        "aberta até sexta-feira, porque a fonte está em manutenção.\n",
        ("cp1252",),
    ),
    "romanian": (
        "Parola seifului este scrisă pe ultima pagină a caietului. Primarul a spus că piaţa va rămâne închisă "
        "până vineri, fiindcă se repară fântâna şi trotuarul.\n",
        ("cp1250", "iso8859_2"),
    ),
    "russian": (
        "Пароль от сейфа записан на последней странице тетради. Мэр сказал, что площадь будет закрыта до "
        "пятницы, потому что чинят фонтан.\n",
        ("cp1251", "koi8_r", "cp866", "iso8859_5", "mac_cyrillic"),
    ),
    "spanish": (
        "La contraseña de la caja está escrita en la última página del cuaderno. El alcalde señaló que la plaza "
        "seguirá cerrada hasta el viernes, según él, por las obras de la fuente. ¿Qué más pasará mañana?\n",
        ("cp1252",),
    ),
    "swedish": (
        "Koden till kassaskåpet står på sista sidan i häftet. Borgmästaren sade att torget förblir stängt till "
        "på fredag, eftersom fontänen måste lagas.\n",
        ("cp1252",),
    ),
    "thai": (
        "รหัสผ่านของตู้นิรภัยเขียนไว้ที่หน้าสุดท้ายของสมุด นายกเทศมนตรีกล่าวว่าจัตุรัสจะปิดจนถึงวันศุกร์\n",
        ("cp874", "tis_620"),
    ),
    "turkish": (
        "Kasanın şifresi defterin son sayfasında yazılıdır. Belediye başkanı, çeşme onarıldığı için meydanın "
        "cuma gününe kadar kapalı kalacağını söyledi.\n",
        ("cp1254", "iso8859_9"),
    ),
    "ukrainian": (
        "Пароль від сейфа записано на останній сторінці зошита. Міський голова сказав, що площа буде зачинена "
        "до п'ятниці, бо лагодять її фонтан.\n",
        ("cp1251", "koi8_u"),
    ),
    "vietnamese": (
        # cp1258 has accented letters, and tones as marks after them
        "Mâ\u0323t khâ\u0309u cu\u0309a ke\u0301t să\u0301t đươ\u0323c ghi ơ\u0309 trang cuô\u0301i cu\u0300ng cu\u0309a "
        "quyê\u0309n sô\u0309. Thi\u0323 trươ\u0309ng no\u0301i ră\u0300ng qua\u0309ng trươ\u0300ng se\u0303 đo\u0301ng cư\u0309a.\n",
        ("cp1258",),
    ),
}

SHORT = [
    ("Příliš žluťoučký kůň\n", "cp1250"),
    ("Zażółć gęślą jaźń\n", "iso8859_2"),
    ("Jelszó: őrült űrhajó\n", "cp1250"),
    ("Şifre: güneş ışığı\n", "cp1254"),
    ("Привет, мир\n", "cp1251"),
    ("Пароль: синяя птица\n", "koi8_r"),
    ("Пароль: синяя птица\n", "cp866"),
    ("Καλημέρα κόσμε\n", "cp1253"),
    ("הסיסמה היא כחול\n", "cp1255"),
    ("كلمة السر هي طائر\n", "cp1256"),
    ("รหัสผ่านคือนกสีฟ้า\n", "cp874"),
    ("パスワードは青い鳥です。\n", "cp932"),
    ("パスワードは青い鳥です。\n", "euc_jp"),
    ("日本語\n", "euc_jp"),
    ("密码是青鸟\n", "gb18030"),
    ("비밀번호는 파랑새\n", "cp949"),
    ("// výpočet ceny\nint x;\n", "cp1250"),
    ("# функция\ndef f(): return 1\n", "cp1251"),
    ("int x; // 変数\nint y; // アイウエオ\n", "cp932"),
]
ENGLISH = [
    "The café in Zoë’s street was closed yesterday, and nobody knew why.\n",
    "/* Copyright © 2001 */\nint main(void) { return 0; }\n",
    "It costs £5 – or so he said.\n",
    "naïve\n",
    "# by François Pérez\nx = 1\n",
    "© 2019 Müller GmbH. All rights reserved.\n",
    "“Quoted” text… with ‘marks’\n",
    "Price: 12 €, 20 °C ± 0.5\n",
    "The Ångström unit and the Schrödinger equation.\n",
    "x² + y² = z²\n",
]
