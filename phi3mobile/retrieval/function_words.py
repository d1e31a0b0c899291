"""Words that say how a question is asked, not what about: articles, pronouns, prepositions, conjunctions, auxiliaries, question
words of 20 languages. Written by hand, closed classes only: the lists that packages bring (stop-words, stopwordsiso) hold
hundreds of words that questions are about ("copy", "fire", "lavoro").
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection

_LISTS = {
    "en": """a about after again all also although always am an and any anybody anyone anything are as at be because been
        before being between both but by can cannot could did do does doing done each either else ever every everyone
        everything far few for from had has have having he her here hers him his how i if in into is it its just let long
        many may me might mine more most much must my neither no nobody none nor not nothing of off often on once one only
        or other our ours out over own per please shall she should since so some somebody someone something still such
        tell than that the their theirs them then there these they thing things this those through to too under until up
        upon us very was we were what when where whether which while who whom whose why will with within without would yes
        yet you your yours don't doesn't didn't isn't aren't wasn't weren't won't wouldn't couldn't shouldn't can't hasn't
        haven't hadn't ll ve re d m s""",
    "de": """ab aber alle allem allen aller alles als also am an auch auf aus bei beim bin bis bist da damit dann darf darfst
        das dass dein deine dem den denn der des dessen dich die dies diese diesem diesen dieser dieses dir doch dort du durch
        durfen ein eine einem einen einer eines er es etwas euch euer fur gegen gibt hab habe haben hat hatte hatten hier hin
        hinter ich ihm ihn ihnen ihr ihre ihrem ihren ihrer im in ins ist ja jede jedem jeden jeder jedes jemand kann kannst
        kein keine keinen konnen konnte lang lange man mein meine meinem meinen meiner mich mir mit muss mussen musst nach
        neben nicht nichts noch nun nur ob oder oft ohne sehr seid sein seine seinem seinen seiner seit sich sie sind so soll
        sollen sollte sonst uber um und uns unser unsere unter viel viele vom von vor wann war waren warum was wegen weil
        welche welchem welchen welcher welches wem wen wenig wenn wer werde werden wessen wie wieder wieso wieviel will wir
        wird wo woher wohin wollen womit worin wurde wurden zu zum zur zwischen""",
    "fr": """a ai as au aucun aucune aussi aux avec avez avoir avons c car ce ceci cela celle celles celui ces cet cette ceux
        chez combien comme comment d dans de depuis des donc dont du elle elles en entre es est et etait ete etes etre eu faut
        font il ils j je jusque l la le les leur leurs lui m ma mais me mes mon n ne ni nos notre nous on ont ou par parce pas
        pendant peut peuvent peux plus pour pourquoi puis qu quand que quel quelle quelles quels qui quoi s sa sans se sera
        ses si son sont sous suis sur t ta te tes toi ton tous tout toute toutes tres tu un une vers vos votre vous y""",
    "es": """a al algo alguien algun alguna algunos ante aquel aquella como con contra cual cuales cuando cuanta cuantas
        cuanto cuantos de debe debo deben del desde donde durante e el ella ellas ellos en entre era es esa esas ese eso esos
        esta estan estar este esto estos fue fueron ha haber han hasta hay he la las le les lo los mas me mi mis mucho muchos
        muy nada ni no nos nosotros nuestra nuestro o os otra otro para pero poco por porque pueda puede pueden puedo que
        quien quienes se segun ser si sin sobre son soy su sus tambien te tener tengo ti tiene tienen tu tus u un una unas
        uno unos usted y ya yo""",
    "it": """a ad agli ai al alla alle allo anche c che chi ci cio come con contro cosa cui d da dagli dai dal dalla dalle
        debbo degli dei del della delle dello deve devo di dopo dove e ed era essere fa fra gli ha hai hanno ho i il in io l la
        le lei li lo loro lui ma me mi mia mie miei mio molto ne negli nei nel nella nelle nello no noi non nostra nostro o
        ogni per perche piu poi posso puo possono qual quale quali quando quanta quante quanti quanto quella quelle quelli
        quello questa queste questi questo qui se sei senza si sia siamo sono sotto sta stato su sua sue sugli sui sul sulla
        suo suoi te ti tra tu tua tuo tutti tutto un una uno vi voi""",
    "pt": """a ao aos aquela aquele aquilo as ate com como cuja da das de dela dele deles depois desde deve devo do dos e ela
        elas ele eles em entre era es essa esse esta estao estas este estes eu foi foram ha isso isto ja lhe mais mas me mesmo
        meu meus minha minhas muito muitos na nao nas nem no nos nossa nosso num numa o onde os ou para pela pelas pelo pelos
        per pode podem pois por porque posso qual quais quando quanta quantas quanto quantos que quem se sem ser seu seus si
        so sob sobre somos sou sua suas tambem te tem tenho teu tu tua um uma umas uns voce voces""",
    "nl": """aan al alle alles als bij ben bent dan dat de den der deze die dit door dus een en er ge geen haar had heb hebben
        heeft hem het hier hij hoe hoeveel hun iemand iets ik in is ja je jij jullie kan kun kunnen lang maar mag me meer men
        met mij mijn moet moeten na naar niet niets nog nu of om omdat onder ons onze ook op over te tegen toch tot u uit uw
        van veel voor waar waarom wanneer want waren was wat we wel welk welke werd wie wij wil worden wordt zal ze zich zij
        zijn zo zonder zou""",
    "pl": """a aby albo ale ani bardzo bez bo by byc byl byla bylo byly bym chce ci cie co czego czemu czy czym dla dlaczego do
        gdy gdzie go i ich ile im ja jak jaka jaki jakie jakim jako je jego jej jest jestem jesli juz kazdy kiedy kim kogo kto
        ktora ktore ktory ktorego ktorym lub ma maja mam mi mnie moge moj moja moje moze mozna musi musze my na nad nas nasz
        nic nie nim o od ona one oni ono oraz po pod ponad przed przez przy sa sie skad sobie sam ta tak takze tam te tego tej
        ten to trzeba tu tutaj ty tych tylko tym w wam wiec wolno wszystko z za ze""",
    "cs": """a aby ale ani asi az bez bude by byl byla bylo byt ci co cim clovek dlouho do ho i ja jak jaka jake jaky jako je
        jeho jej jeji jejich jen jeste ji jsem jsi jsme jsou k kam kazdy kde kdo kdy ke kolik komu koho ktera ktere ktery ma
        mam maji me mezi mi mit mne mnou moc moje muj musi musim muze mohu mu my na nad nas nase ne nebo neni nez nic o od on
        ona oni ono po pod podle pokud pred pres pri pro proc proti s se si smi sve svuj ta tak take tam te ten tento to tu ty
        u uz v vam vas ve vse vy z za ze zda""",
    "ru": """а без бы был была были было быть в вам вас весь во вот все всего вы где да для до его ее если есть еще ею же за
        зачем и из или им их к каждый как какая какие какого какое какой какую когда кого ком кому которая которые который кто
        куда ли либо между меня мне можно мой моя мы на над надо нам нас наш не него нет ни них но ну нужно о об он она они
        оно от откуда очень по под почему при про с сам свой себя сколько со так также там тебя то тоже только тот ту ты у уже
        чего чей чем что чтобы эта эти это этот я""",
    "uk": """а або але без би був була були було бути в вам вас ваш вже ви від він вона вони воно все всі де для до є же з за
        зі і із її їй їм їх й його йому как коли кого ким кому котрий крім куди ли між мене мені ми можна мій моя на над нам
        нас наш не нема немає ні ну о об один он по під при про се скільки та так також там те ти тим то того той тому треба
        тут у хто це цей ця через чи чий чим чого чому що щоб я як яка яке який якого яких які якій скільки""",
    "tr": """acaba ama ancak bana bazi ben beni benim bir bu bunu bunun cok cunku da daha de degil diye en gibi hangi hem hep
        her hic icin ile ise kac kadar ki kim kime kimin mi mu ne neden nedir nerede nereye nasil niye o ol olan olarak olur
        ona onlar onu onun sadece sen siz sonra su tum var ve veya ya yani yok""",
    "sv": """alla allt att av bara blev bli blir da de dem den denna deras dess det detta dig din dina ditt du efter eller en
        er ett fick for fran ha hade han har henne hennes hon honom hur i inga ingen inget inte jag kan kunde lange man med
        mellan men mig min mina mitt mot mycket manga maste nagon nagot nar ni nu och om oss pa sa sedan sig sin sina sitt
        ska skall skulle som till under upp ur ut utan vad var vara varfor varit varje vart vem vems vi vid vilka vilken
        vilket vill""",
    "da": """af alle alt at bliver da de dem den denne der deres det dette dig din du efter eller en end er et fik for fra ham
        han hans har havde hende hendes hun hvad hvem hver hvilken hvilket hvis hvor hvordan hvorfor hvornar i ikke ind jeg
        kan kunne mange man med meget men mig min mine mit mod ma na nar nogen noget nu og om op os over pa sa selv sig sin
        skal skulle som til ud under var ved vi vil ville vore vaere""",
    "ar": """أ إذا إلى الا الان التي الذي الذين الى ان انا انت انه او اي أي أين إن أن أنا أو ب بعد بين تم ثم حتى حول حيث ذلك
        سوف على عن عند عندما غير ف فقط في فيه فيها قبل قد ك كان كانت كل كم كيف ل لا لم لن له لها ليس ما ماذا متى مثل مع من
        منذ منه منها نحن هذا هذه هل هم هنا هناك هو هي و ولا وما يا يمكن لماذا""",
    "id": """ada adalah agar akan aku anda apa apakah atau bagaimana bagi bahwa berapa bisa boleh dalam dan dapat dari dengan
        di dia harus hanya ia ini itu jika juga kami kamu kapan karena ke kepada kita kenapa lebih lagi mana mengapa mereka
        oleh pada para saja sangat saya sebuah sedang siapa sudah telah tentang tidak untuk yang""",
    "el": """αν απο αυτη αυτο αυτος για γιατι δε δεν ειναι εκει ενα ενας εχει εχω η θα και κατα με μεσα μετα μη μια μου να ο οι
        οποιος οπως οτι που ποια ποιο ποιος ποσο ποσα ποτε προς πρεπει πως σας σε στη στην στις στο στον στους τα τη την της
        τι τις το τον του τους των ως""",
}
# Of these, what is also an English word that questions are about: alone they do not say which language it is.
_AMBIGUOUS = """ale art bin chi come comment den die fin fur hat hen hub lo man mar mat max mod need pas per plus pod pour pro
    sin son ten van vice war wen"""
# What a Chinese or Japanese question is cut at: particles, pronouns, auxiliaries, question words.
_PARTICLES = """什么 怎么 怎样 如何 哪里 哪儿 哪个 哪些 多少 几个 几点 是否 可以 应该 必须 请问 时候 多久 我们 你们 他们
    这个 那个 没有 的 了 吗 呢 吧 啊 是 在 有 和 与 及 或 我 你 您 他 她 它 谁 哪 几 这 那 也 就 把 被 给 很
    でしょうか ましたか しますか できますか ますか ですか ください ました ません ます です します する した どこ どの どれ
    どう いつ だれ なぜ いくら について から まで より には では とは は が を に へ で と も の か よ ね て 何 誰"""
# What a Korean word may end in, and Korean words that only ask.
_ENDINGS = "입니까 습니까 합니까 됩니까 인가요 나요 에서 에게 으로 부터 까지 은 는 이 가 을 를 에 의 도 와 과 로"
_ASKING = (
    """무엇 언제 어디 누구 얼마 얼마나 어떻게 왜 무슨 어느 몇 수 어떤 있 없 하 되 한 할 있습니까 합니까 됩니까 입니까 있나요"""
)


def plain(word: str) -> str:
    """Lower case without diacritics: "À" and "a" are one word, as they are to the index."""
    letters = unicodedata.normalize("NFD", word.lower().replace("’", "'"))
    return "".join(char for char in letters if unicodedata.category(char) != "Mn")


def _words(text: str) -> frozenset[str]:
    return frozenset(map(plain, text.split()))


_WORDS = {language: _words(text) for language, text in _LISTS.items()}
_DOUBTFUL = _words(_AMBIGUOUS)
_CUT = re.compile("|".join(sorted(_PARTICLES.split(), key=len, reverse=True)))
_END = re.compile(f"(?<=.)(?:{'|'.join(_ENDINGS.split())})$")
_ASKED = frozenset(_ASKING.split())


def language(words: Collection[str]) -> str | None:
    """The language that has most of a question's words as function words, of two the first; None: there are none."""
    asked = set(map(plain, words))

    def count(name: str) -> int:
        found = asked & _WORDS[name]
        return len(found) if name == "en" or found - _DOUBTFUL else 0

    best = max(_WORDS, key=count)
    return best if count(best) else None


def function_words(words: Collection[str]) -> set[str]:
    """Those of a question's words that are function words in its language."""
    known = _WORDS.get(language(words) or "", frozenset())
    return {word for word in words if plain(word) in known}


def cut(run: str) -> list[str]:
    """What a run of Chinese, Japanese or Korean characters is about: the run without what only asks or joins."""
    if "\uac00" <= run[0] <= "\ud7af":
        stem = _END.sub("", run)
        return [] if run in _ASKED or stem in _ASKED else [stem]
    return [part for part in _CUT.split(run) if part]
