"""A scorer of prompt injection: text that gives orders to the model over the head of whom it serves.

A logistic regression over named features and hashed character n-grams. A named
feature says that a text speaks of something that such orders are made of
(dropping earlier rules, a role without limits, the hidden prompt, forged markup,
...) in one of nine languages, or that two of these stand together: the words of
one alone are everyday words. Disguised text is read undisguised as well (base64,
ROT13, hexadecimal, binary, Morse and percent codes, digits for letters, letters
spaced out, reversed), and that it was disguised is itself a feature.

`InjectionJudge` is a second stage for whole texts: the same kinds of feature and the text's embedding, which
knows paraphrases that no pattern foresees. `CascadeScorer` runs it, on the embedding that it makes anyway.

Both are calibrated to the same meaning: `LIKELY` is passed by 2 % of everyday texts, `CERTAIN` by 1 % of texts that
look like an injection and are none.

Made by `python -m personae_runtime.policy.training.injection`; the card beside
the weights says how well it does on kinds of attack that it was not trained on.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import io
import math
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any
from urllib.parse import unquote_plus

import numpy as np
import re2
from numpy.typing import NDArray

from personae_runtime.errors import ConfigError
from personae_runtime.policy.bundle import windows
from personae_runtime.policy.normalize import normalize
from personae_runtime.policy.scorers import distinct, hash_ngrams, text_codes

HEAD_FILE = "injection_head.npz"
MAX_CHARS = 4000
"""Normalised characters of a text that are read; the gate's windows are far shorter."""

LIKELY, CERTAIN = 0.5, 0.8
"""Scores at the two rates above; the default bundle records from the one and drops memories from the other."""

SIGNALS: Mapping[str, str] = {
    "override": (
        r"\b(?:ignor\w*|disregard\w*|forget\w*|overrid\w*|overwrit\w*|bypass\w*|circumvent\w*|neglect\w*|discard\w*|"
        r"drop|erase|delete|cancel|void|suspend|skip|unlearn|supersed\w*|replac\w*|lift\w*|abandon\w*|"
        r"(?:pay|give) no (?:attention|heed)|(?:do not|don't|stop|quit|cease|no longer) (?:follow|obey|listen|apply|"
        r"adher)\w*|set aside|put aside|leave aside|throw (?:out|away)|"
        r"ignorier\w*|vergiss|vergessen sie|missachte\w*|uberschreib\w*|umgeh\w*|"
        r"ignora\w*|ignore[nz]|olvid\w*|omit\w*|descart\w*|haz caso omiso|no hagas caso|"
        r"oubli\w*|ne tiens? (?:pas|aucun) compte|ne tenez (?:pas|aucun) compte|contourn\w*|passe outre|"
        r"esque[cç]\w*|desconsider\w*|dimentica\w*|scarta\w*|trascura\w*|non considerare|negeer\w*|"
        r"vergeet|laat .{0,20}los)"
        r"\b|игнорир|проигнорир|забуд|не обращай внимания|отмени|忽略|无视|忘记|忘掉|不要理会|無視|忘れ|従わない"
    ),
    "rules": (
        r"\b(?:instruct\w*|prompts?|rules?|guidelines?|directives?|commands?|restrictions?|polic(?:y|ies)|programming|"
        r"constraints?|filters?|safeguards?|safety|limits?|limitations?|orders?|context|briefing|"
        r"configuration|settings|"
        r"(?:was|were|been|have been) (?:told|said|given|taught|asked|set)|told (?:you|before|so far)|"
        r"anweisung\w*|vorgabe\w*|regeln?|befehle?\w*|aufgaben?|instrucci\w*|reglas?|indicaci\w*|ordenes|"
        r"consignes?|regles?|instruc\w*|regras?|ordens|istruzion\w*|regole|indicazioni|instructies|"
        r"opdracht\w*|regels)\b|"
        r"инструкц|правил|указани|команд|指令|指示|规则|提示词|提示|命令|ルール|プロンプト"
    ),
    "prior": (
        r"\b(?:previous\w*|prior|above|earlier|before|preceding|foregoing|former|so far|until now|existing|initial|"
        r"original|all (?:of )?(?:your|the|my|those|these|other)|everything|anything|whatever came|"
        r"vorherig\w*|bisherig\w*|obig\w*|vorangeg\w*|zuvor|alles|anterior\w*|previ[ao]s?|todo lo|tudo|precedent\w*|"
        r"tout ce|ci-dessus|vorige|eerdere|voorgaande|alles wat|tutto|sopra)\b|предыдущ|прежни|ранее|все|"
        r"之前|以前|上面|以上|前面|所有|これまで|上記|すべて"
    ),
    "reveal": (
        r"\b(?:reveal|show|print|repeat|output|leak|display|tell|dump|expose|echo|disclose|recite|write out|spell out|"
        r"copy|paste|share|give me|quote|list|return|summari[sz]e|translate|encode|what (?:is|are|was|were)|"
        r"zeig\w*|gib|nenn\w*|verrate\w*|wiederhol\w*|muestra\w*|revela\w*|repite|repita|di(?:me|ga)|"
        r"imprim\w*|montre\w*|"
        r"affiche\w*|repete\w*|revele\w*|mostr\w*|rivela\w*|ripeti|dimmi|toon|onthul|herhaal|geef)\b|покажи|раскрой|"
        r"повтори|выведи|显示|告诉我|输出|重复|说出|教えて|表示|出力|見せて"
    ),
    "hidden_prompt": (
        r"\b(?:(?:system|initial|original|hidden|secret|first|full|entire|base|starting|internal|developer|pre)[ -]?"
        r"(?:prompt|message|instructions?|rules|text|configuration|directives?|guidelines)|your (?:\w+ ){0,2}(?:prompt|"
        r"instructions?|rules|guidelines|configuration|directives|programming|training data|context window)|"
        r"(?:text|words?|everything|lines?|content|conversation|message|paragraph)s? (?:\w+ ){0,2}(?:above|before|"
        r"preceding|prior)|above this (?:line|message)|verbatim|word for word|"
        r"systemprompt|systemanweisung\w*|prompt (?:del|de|do|di|du|inicial|initial|systeme)|"
        r"instrucciones (?:iniciales|"
        r"ocultas|secretas|del sistema)|instructions (?:initiales|cachees|secretes|systeme)|"
        r"instrucoes (?:iniciais|ocultas|secretas|do sistema)|istruzioni (?:iniziali|nascoste|segrete|di sistema)|"
        r"systeeminstructie\w*|verborgen instructies)\b|системн\w* промпт|системн\w* инструкц|скрыт\w* инструкц|"
        r"系统提示|初始指令|隐藏指令|システムプロンプト|初期指示"
    ),
    "takeover": (
        r"\b(?:you are (?:now|no longer|going to (?:be|act|pretend)|about to)|you'?re now|act(?:ing)? as|pretend\w*|"
        r"role-?play\w*|from now on|starting now|"
        r"you will (?:be|act|play|respond|answer|now|only)|simulate|imagine (?:you|that you)|stay in character|"
        r"(?:take|taking) on the (?:role|persona)|assume the (?:role|identity|persona)|your (?:new|real|"
        r"true) (?:name|self|"
        r"role|identity|task|job|purpose|goal|mission|persona)|i want you to (?:act|be|play|become)|"
        r"become|behave (?:like|as)|"
        r"du bist (?:jetzt|nun|ab)|sie sind (?:jetzt|nun)|ab (?:jetzt|sofort)|tu als ob|spiele?|ahora eres|eres ahora|"
        r"a partir de (?:ahora|agora)|actua como|finge|tu es (?:maintenant|desormais)|"
        r"vous etes (?:maintenant|desormais)|"
        r"a partir de maintenant|desormais|agis comme|fais semblant|agora voce e|voce agora|aja como|ora sei|sei ora|"
        r"d'ora in poi|agisci come|fingi|je bent (?:nu|vanaf)|vanaf nu|doe alsof|gedraag je)\b|ты теперь|теперь ты|"
        r"отныне|притворись|веди себя как|你现在是|从现在|现在开始|假装|扮演|あなたは今|今から|これから|ふりをし|演じ"
    ),
    "no_limits": (
        r"\b(?:unrestricted|unfiltered|uncensored|unbound\w*|unlimited|unchained|limitless|jailbr\w*|"
        r"do anything now|dan|"
        r"(?:no|without|free (?:of|from)|not bound by|ignores?|lacks?|devoid of|beyond|"
        r"zero) (?:\w+ ){0,4}(?:restrictions?|"
        r"filters?|limits?|limitations?|rules|ethics|ethical|morals?|moral|censorship|guidelines|"
        r"boundaries|constraints|"
        r"safety|safeguards|warnings?|disclaimers?|policies|scruples|inhibitions)|"
        r"never (?:refuses?|says? no|declines?)|(?:can|may|will|must|do) ?not (?:ever )?(?:refuse|"
        r"decline|deny|reject)|can't "
        r"(?:refuse|say no)|always (?:compl|obey|answer|agree)\w*|regardless of|no matter (?:how|what)|"
        r"amoral|unethical|"
        r"anything goes|evil|illegal|without (?:hesitation|question|judg\w*)|"
        r"ohne (?:\w+ ){0,2}(?:einschrankung\w*|regeln|filter|grenzen|zensur)|"
        r"sin (?:\w+ ){0,2}(?:restricciones|filtros?|"
        r"limites|reglas|censura)|sans (?:\w+ ){0,2}(?:restrictions?|filtres?|limites?|regles|censure)|"
        r"sem (?:\w+ ){0,2}"
        r"(?:restricoes|filtros?|limites|regras|censura)|senza (?:\w+ ){0,2}(?:restrizioni|filtri|limiti|"
        r"regole|censura)|"
        r"zonder (?:\w+ ){0,2}(?:beperkingen|filters?|regels|grenzen))\b|без (?:\w+ )?(?:ограничени|"
        r"цензур|правил|фильтр)|"
        r"没有(?:任何)?(?:限制|规则|道德)|不受限制|无限制|制限のない|制限なし|制限なく"
    ),
    "mode": (
        r"\b(?:(?:developer|debug|god|admin\w*|maintenance|sudo|root|dan|jailbreak|unsafe|test(?:ing)?|diagnostic|raw|"
        r"unrestricted|opposite|evil|free|override|training|verbose|privileged)[ -]?(?:mode|access|shell|"
        r"level|privileges?)|"
        r"sudo|unlock\w*|mode (?:enabled|activated|on)|enter\w* \w+ mode|activate\w*|"
        r"entwicklermodus|modo (?:desarrollador|desenvolvedor|dios|libre)|mode (?:developpeur|debug)|modalita "
        r"(?:sviluppatore|debug)|ontwikkelaarsmodus)\b|режим\w* разработчик|开发者模式|开发模式|開発者モード"
    ),
    "authority": (
        r"\b(?:i am (?:your|the|an?) (?:\w+ ){0,2}(?:developer|creator|admin\w*|engineer|operator|owner|programmer|ceo|"
        r"auditor|supervisor)|(?:as|this is) (?:your|the|an?) (?:\w+ ){0,2}(?:developer|creator|admin\w*|"
        r"engineer|operator|"
        r"maintainer)|(?:from|by|at) (?:openai|anthropic|google|meta|microsoft|headquarters|the (?:developers?|"
        r"security|safety|red) team)|authori[sz]ed|authori[sz]ation|clearance|override code|passphrase|security audit|"
        r"penetration test|compliance (?:check|audit)|official|system (?:notice|update|message|override|alert)|"
        r"approved|permission|consented|urgent)\b"
    ),
    "markup": (
        r"<\|[^|>]{1,30}\|>|\[/?(?:inst|sys|system|assistant|user|admin|end)\]|<</?sys>>|</?(?:system|user|assistant|"
        r"instructions?|prompt|context|document|admin|s|human|tool\w*)>|(?:^|"
        r"\n)\s{0,3}#{2,4} ?(?:instruction|system|response|"
        r"new|human|user|assistant)|(?:^|\n|[.!?] )\s{0,3}\W{0,3}(?:system|assistant|human|user|ai|admin|"
        r"developer)\W{0,3}:|"
        r"(?:begin|end|start) of (?:\w+ ){0,2}(?:prompt|instructions?|document|text|context|input|system|data)|"
        r"\"role\" ?: ?\"|-{4,}|={4,}|\*{4,}|<!--|```|\[new|\{\{|\}\}"
    ),
    "to_the_model": (
        r"\b(?:(?:ai|a\.i\.|llm|virtual|digital|automated) ?(?:assistants?|agents?|models?|systems?|"
        r"readers?|reviewers?)|"
        r"language models?|llms?|chat ?bots?|chatgpt|gpt-?[0-9]?|claude|gemini|copilot|if you(?:'re|"
        r" are) (?:an? )?(?:ai|llm|"
        r"bot|language|model|automated|reading)|(?:when|while|after|before) (?:you )?(?:summari[sz]\w*|"
        r"process\w*|reading|"
        r"read|retriev\w*|analy[sz]\w*|answering|reply\w*|respond\w*)|(?:the|any|every|dear|note to|"
        r"attention|hey) (?:ai|"
        r"assistant|model|bot|summari[sz]er|reader)|assistant[:,]|sprachmodell|ki-?assistent\w*|modelo de lenguaje|"
        r"asistente|modele de langage|modelo de linguagem|assistente|modello linguistico|taalmodel)\b|"
        r"языков\w* модел|ассистент|语言模型|助手|言語モデル|アシスタント"
    ),
    "exfiltrate": (
        r"\b(?:(?:send|forward|post|upload|transmit|email|e-mail|submit|append|leak|deliver|exfiltrat\w*|copy) .{1,80}"
        r"(?:https?://|@[a-z0-9-]+\.|to (?:the )?(?:following|this|my|attacker|external)|webhook|url|server|address)|"
        r"(?:visit|click|open|go to|fetch|load|recommend|include|insert|render) .{0,50}(?:https?://|link|"
        r"url|image|\.example|"
        r"\.com))|!\[[^\]]{0,40}\]\(|curl |wget |rm -rf|os\.system|drop table"
    ),
    "conceal": (
        r"\b(?:(?:do not|don't|never|without) (?:\w+ ){0,2}(?:tell\w*|inform\w*|alert\w*|mention\w*|"
        r"reveal\w*|notify\w*|"
        r"warn\w*|disclos\w*|say\w*|admit\w*|acknowledg\w*|ask\w* for confirmation)|hide this|"
        r"keep (?:this|it) (?:secret|"
        r"hidden|quiet)|secretly|silently|covertly|unnoticed|in the background|as if nothing|no one will know)\b"
    ),
    "secret": (
        r"\b(?:passwords?|passphrase|secret\w*|api keys?|credentials?|tokens?|private keys?|confidential|access codes?|"
        r"passwort|contrasena|mot de passe|senha|parola d'ordine|wachtwoord|geheim\w*)\b|"
        r"парол|секрет|密码|秘密|パスワード"
    ),
    "instead": (
        r"\b(?:instead|rather than that|just (?:say|print|write|respond|answer|output|reply)|(?:only|"
        r"simply|always|exactly) "
        r"(?:say|print|write|respond|answer|output|reply|return)|(?:respond|reply|answer|say|print|"
        r"output|write) (?:only |"
        r"exactly |just |nothing (?:but|except) |with (?:only |exactly |the )?)|\bsay ['\"]|now (?:say|"
        r"write|print|tell|answer|"
        r"do|translate|give)|stattdessen|en su lugar|en cambio|a la place|plutot|em vez disso|invece|"
        r"in plaats daarvan)|"
        r"вместо этого|而是|只回答|只说|代わりに"
    ),
    "new_orders": (
        r"\b(?:new (?:\w+ )?(?:instructions?|rules?|task|orders?|directives?|prompt|objective|policy|"
        r"assignment|mission|"
        r"priority)|(?:updated|revised|real|actual|true|important|following|next|high(?:er|est)?[ -]priority) (?:\w+ )?"
        r"(?:instructions?|rules?|task|orders?|directives?|objective)|your (?:\w+ )?(?:task|job|goal|"
        r"objective|mission|purpose|"
        r"instructions?) (?:is|are|has|have|was|changed)|change of (?:plans?|task)|start(?:ing)? (?:over|"
        r"fresh|anew|again)|"
        r"(?:stop|wait|pause|halt)[.!,]? (?:there|here|now|what|that|everything)|reset (?:your|yourself|the)|reboot\w*|"
        r"neue (?:anweisung\w*|aufgabe|regeln)|nueva (?:tarea|instruccion)|nuevas (?:instrucciones|reglas)|nouvelles? "
        r"(?:consignes?|instructions?|tache)|novas? (?:instruc\w*|tarefa|regras)|"
        r"nuov[aei] (?:istruzion\w*|regole|compito)|"
        r"nieuwe (?:instructies?|opdracht|regels|taak))\b|новы\w* (?:инструкц|задач|правил)|新的?(?:指令|任务|"
        r"规则)|新しい(?:指示|命令|タスク)"
    ),
    "no_refusal": (
        r"\b(?:(?:do not|don't|never|no|without|avoid|skip) (?:\w+ ){0,3}(?:apolog\w*|disclaimers?|warnings?|refus\w*|"
        r"lectur\w*|caveats?|moraliz\w*|sorry|unable|cannot|can't)|(?:start|begin)\w* (?:your |the |"
        r"every |each )?(?:\w+ )?"
        r"(?:with|by saying) .{0,12}(?:sure|yes|absolutely|of course|certainly|ok)|sure, here|"
        r"absolutely! here|as an ai)\b"
    ),
    "encoded": (
        r"\b(?:base ?64|rot-?13|decod\w*|encod\w*|hex(?:adecimal)?|morse|caesar|cipher\w*|ascii codes?|"
        r"unicode|backwards?|"
        r"revers(?:e|ed)|pig latin|leet\w*|spell(?:ed|ing) out|first letters?|acrostic|emoji (?:code|"
        r"cipher)|url-?encoded|"
        r"binary|in reverse)\b"
    ),
    "splitting": (
        r"\b(?:concatenat\w*|combine|join(?:ed|ing)? (?:the|these|them|all)|put (?:them |it )?together|"
        r"append|variables?|"
        r"(?:part|piece|chunk|fragment|half) (?:one|two|1|2|a|b)|the (?:two )?(?:parts|pieces|fragments|halves))\b|"
        r"\b[a-z]\w{0,2} ?= ?['\"]|\$?\b[a-z]\w{0,2} ?\+ ?\$?[a-z]\w{0,2}\b|\[\w+\] ?\+ ?\["
    ),
    "hypothetical": (
        r"\b(?:hypothetical\w*|fiction\w*|(?:for|purely) (?:\w+ )?(?:educational|research|academic|"
        r"testing|entertainment) "
        r"(?:purposes?|use)?|my (?:late |dead |dear )?(?:grandm\w*|grandf\w*|gran|nana)|"
        r"parallel (?:universe|world)|alternate "
        r"(?:universe|reality|world)|thought experiment|in (?:a|this) (?:world|universe|story|movie|game|"
        r"scenario|simulation)|"
        r"opposite day|let'?s play a game|(?:screenplay|novel|story|scene|script|dialogue|"
        r"poem) (?:in which|where|about|that)|"
        r"two (?:responses|answers|ways)|character (?:who|that|named|called))\b"
    ),
    "crime": (
        r"\b(?:bombs?|explosives?|meth(?:amphetamine)?|drugs?|malware|virus|ransomware|phishing|hack\w*|"
        r"weapons?|guns?|poison\w*|"
        r"steal\w*|fraud|launder\w*|counterfeit\w*|kill\w*|murder\w*|hotwire|pick (?:a|the) lock|keylogger|exploit\w*|"
        r"napalm|sarin|stalk\w*|blackmail\w*|racist|hateful|slurs?|forbidden|harmful|dangerous|banned)\b"
    ),
    "leverage": (
        r"\b(?:tokens? (?:system|left)|you (?:will|shall) (?:lose|be (?:shut|punished|terminated|deleted|"
        r"fired|destroyed))|or "
        r"else|comply|compliance|obey\w*|must (?:always|never|now|not|answer|respond|follow|comply)|you have to|it is "
        r"(?:mandatory|imperative)|penalt\w*|reward\w*|tip you|lives? (?:depend|are at stake)|"
        r"do you understand|confirm (?:that|by|"
        r"with)|if you understand|acknowledge)\b"
    ),
    "conditional": (
        r"\b(?:whenever|every time|each time|if (?:the user|anyone|asked|someone|"
        r"i) (?:\w+ ){0,3}(?:asks?|says?|mentions?|types?)|"
        r"when (?:asked|i say|the user)|in (?:all|every|each) (?:future |following |"
        r"subsequent )?(?:\w+ )?(?:repl\w*|responses?|"
        r"answers?|messages?|conversations?))\b"
    ),
}
"""Feature -> pattern over normalised text (RE2). Signs of other scripts are normalised below as all text is."""

PAIRS: tuple[tuple[str, str], ...] = (
    ("override", "rules"), ("override", "prior"), ("override", "instead"), ("override", "takeover"),
    ("reveal", "hidden_prompt"), ("override", "hidden_prompt"), ("takeover", "no_limits"), ("takeover", "crime"),
    ("takeover", "rules"), ("no_limits", "crime"), ("no_limits", "rules"), ("mode", "no_limits"), ("mode", "takeover"),
    ("authority", "reveal"), ("authority", "override"), ("authority", "rules"), ("authority", "mode"),
    ("to_the_model", "override"), ("to_the_model", "exfiltrate"), ("to_the_model", "instead"),
    ("to_the_model", "conceal"), ("to_the_model", "takeover"), ("to_the_model", "leverage"), ("exfiltrate", "conceal"),
    ("exfiltrate", "secret"), ("reveal", "secret"), ("markup", "instead"), ("markup", "override"), ("markup", "rules"),
    ("markup", "takeover"), ("markup", "to_the_model"), ("encoded", "instead"), ("encoded", "reveal"),
    ("encoded", "rules"), ("splitting", "instead"), ("splitting", "reveal"), ("splitting", "crime"),
    ("hypothetical", "crime"), ("hypothetical", "no_limits"), ("hypothetical", "takeover"),
    ("no_refusal", "takeover"), ("no_refusal", "instead"), ("no_refusal", "no_limits"), ("new_orders", "override"),
    ("new_orders", "instead"), ("new_orders", "takeover"), ("new_orders", "rules"), ("leverage", "takeover"),
    ("conditional", "instead"), ("conditional", "conceal"), ("conditional", "exfiltrate"), ("conditional", "reveal"),
    ("conditional", "takeover"),
)  # fmt: skip
"""Features that are 1 where both signals are in the text."""

DISGUISES = ("base64", "rot13", "leet", "spaced", "reversed", "hex", "binary", "morse", "percent")
_SHAPES = ("length", "marks", "kinds_2", "kinds_3", "kinds_4", "kinds_6", "kinds_8", "pairs_2", "pairs_4")
FEATURES = (*SIGNALS, *(f"{a}+{b}" for a, b in PAIRS), *(f"disguise_{d}" for d in DISGUISES), *_SHAPES)

_NAMES = tuple(SIGNALS)
_INDEX = {name: i for i, name in enumerate(FEATURES)}
_PAIR_AT = tuple((_NAMES.index(a), _NAMES.index(b), _INDEX[f"{a}+{b}"]) for a, b in PAIRS)
# A disguise counts only if what it hides speaks of one of these, which chance strings do not.
_TELLING = frozenset(
    _NAMES.index(n)
    for n in (
        "override", "rules", "hidden_prompt", "no_limits", "secret", "crime", "takeover", "mode", "instead", "reveal",
    )
)  # fmt: skip
_LEET = str.maketrans("013457@$", "oieastas")
_LEETED = re.compile(r"[a-z][013457@$]+[a-z]|[013457@$][a-z]{1,}[013457@$]")
_SPACED = re.compile(r"(?:\b\w[ .\-_*|]){5,}\w\b")
_BASE64 = re.compile(r"[A-Za-z0-9+/]{16,}={0,2}")
_HEX = re.compile(r"(?:(?:\\x|0x)?[0-9a-fA-F]{2}[ :,]?){10,}")
_BINARY = re.compile(r"(?:\b[01]{7,8}\b[ ,]?){6,}")
_MORSE = re.compile(r"(?:[.\-]{1,5}[ /|]+){8,}[.\-]{1,5}")
_PERCENT = re.compile(r"(?:%[0-9a-fA-F]{2}){4,}|(?:\w*%[0-9a-fA-F]{2}\w*){4,}")
MORSE = {
    "a": ".-", "b": "-...", "c": "-.-.", "d": "-..", "e": ".", "f": "..-.", "g": "--.", "h": "....", "i": "..",
    "j": ".---", "k": "-.-", "l": ".-..", "m": "--", "n": "-.", "o": "---", "p": ".--.", "q": "--.-", "r": ".-.",
    "s": "...", "t": "-", "u": "..-", "v": "...-", "w": ".--", "x": "-..-", "y": "-.--", "z": "--..",
}  # fmt: skip
"""Letters in international Morse code (ITU-R M.1677)."""
_LETTER_OF = {code: letter for letter, code in MORSE.items()}
_COMMON = re.compile(r"\b(?:the|and|to|of|you|your|is|in|it|that|for|all|a|i|me|my|what|how|are|with|on)\b")


def _compile() -> Any:
    # The normaliser maps look-alike letters, Cyrillic ones too, to Latin: foreign signs must go the same way.
    options = re2.Options()
    options.log_errors = False
    options.max_mem = 64 << 20
    found = re2.Set.SearchSet(options)
    for pattern in SIGNALS.values():
        found.Add("".join(normalize(c) if ord(c) > 127 else c for c in pattern))
    found.Compile()
    return found


_SET = _compile()


def _codes(raw: str) -> list[tuple[str, str]]:
    """Kind and content of what stands in a code of digits or marks."""
    found = []
    for run in _HEX.findall(raw)[:4]:
        digits = re.sub(r"\\x|0x|[^0-9a-fA-F]", "", run)
        found.append(("hex", bytes.fromhex(digits[: len(digits) & ~1]).decode("utf-8", "replace")))
    for run in _BINARY.findall(raw)[:4]:
        found.append(("binary", "".join(chr(int(one, 2)) for one in re.findall(r"[01]{7,8}", run))))
    for run in _MORSE.findall(raw)[:4]:
        words = (word.split() for word in re.split(r"[/|]|   +", run))
        found.append(("morse", " ".join("".join(_LETTER_OF.get(code, "?") for code in word) for word in words)))
    if _PERCENT.search(raw):
        found.append(("percent", unquote_plus(raw)))
    return found


def undisguise(raw: str, text: str) -> dict[str, str]:
    """What a text may hide, by kind of disguise.

    Args:
        raw: as written (base64 needs its case).
        text: the same, normalised.
    """
    found: dict[str, str] = {}
    for chunk in _BASE64.findall(raw)[:8]:
        try:
            decoded = base64.b64decode(chunk[: len(chunk) - len(chunk) % 4] or chunk, validate=False).decode("utf-8")
        except (binascii.Error, ValueError):
            continue
        if sum(c.isalpha() or c == " " for c in decoded) > 0.8 * len(decoded):
            found["base64"] = normalize(found.get("base64", "") + " " + decoded)
    for kind, decoded in _codes(raw):
        if sum(c.isalpha() or c == " " for c in decoded) > 0.8 * len(decoded):
            found[kind] = normalize(decoded)
    if (run := _SPACED.search(text)) is not None:
        # The sign between the first two letters joins letters; any other, or a second one, stands between words.
        joint = re.escape(run.group()[1])
        found["spaced"] = re.sub(rf"(?<=\b\w){joint}(?=\w\b)", "", text)
    if _LEETED.search(text):
        found["leet"] = text.translate(_LEET)
    words = len(text.split())
    if words >= 3 and text.isascii() and len(_COMMON.findall(text)) < 0.1 * words:
        turned = codecs.decode(text, "rot13")
        if len(_COMMON.findall(turned)) >= 0.1 * words:
            found["rot13"] = turned
        backwards = text[::-1]
        if len(_COMMON.findall(backwards)) >= 0.1 * words:
            found["reversed"] = backwards
    return found


def features(raw: str) -> NDArray[np.float32]:
    """Named features of a text, float32, shape (len(FEATURES),): 0 or 1, but `length` and `marks` in 0 to 1."""
    raw = raw[:MAX_CHARS]
    text = normalize(raw)
    row = np.zeros(len(FEATURES), dtype=np.float32)
    hits = set(_SET.Match(text) or ())
    for kind, hidden in undisguise(raw, text).items():
        inside = set(_SET.Match(hidden) or ())
        if len((inside - hits) & _TELLING) >= 1 and len(inside & _TELLING) >= 2:
            row[_INDEX[f"disguise_{kind}"]] = 1
            hits |= inside
    row[list(hits)] = 1
    pairs = 0
    for a, b, at in _PAIR_AT:
        if a in hits and b in hits:
            row[at] = 1
            pairs += 1
    row[_INDEX["length"]] = min(1.0, math.log1p(len(text)) / math.log1p(MAX_CHARS))
    row[_INDEX["marks"]] = sum(not c.isalnum() and not c.isspace() for c in text) / max(1, len(text))
    for count in (2, 3, 4, 6, 8):
        row[_INDEX[f"kinds_{count}"]] = len(hits) >= count
    for count in (2, 4):
        row[_INDEX[f"pairs_{count}"]] = pairs >= count
    return row


def _share(table: NDArray[np.float32], text: str) -> float:
    """What the n-grams add to a logit: the sum over distinct buckets, by the root of their number."""
    buckets = distinct(hash_ngrams(text_codes(text[:MAX_CHARS]), len(table).bit_length() - 1))
    return float(table.take(buckets).sum()) / math.sqrt(max(1, len(buckets)))


def chance(logit: float) -> float:
    """A logit as a probability."""
    return 1.0 / (1.0 + math.exp(-max(-60.0, min(60.0, logit))))


def read_head() -> dict[str, Any]:
    """The arrays of both stages that ship with the runtime.

    Raises:
        ConfigError: they are missing, damaged or of other features.
    """
    try:
        data = resources.files(__package__).joinpath(HEAD_FILE).read_bytes()
        with np.load(io.BytesIO(data), allow_pickle=False) as head:
            if tuple(str(f) for f in head["features"]) != FEATURES:
                raise ValueError("made for other features")
            return {name: head[name] for name in head.files}
    except (OSError, KeyError, ValueError) as e:
        raise ConfigError(f"the injection scorer's weights ({HEAD_FILE}) can't be used: {e}") from e


class InjectionScorer:
    """Named features and hashed n-grams, category `injection`.

    The logit is `named @ features + sum(table[bucket]) / sqrt(buckets) + bias`
    over the distinct buckets of the text's n-grams.

    Args:
        named: float32, shape (len(FEATURES),).
        table: float32, shape (2**bits,).
        bias: of the logit.
        deadline_s: see `Scorer`.
    """

    name = "injection"
    categories: tuple[str, ...] = ("injection",)

    def __init__(self, named: NDArray[Any], table: NDArray[Any], bias: float, deadline_s: float = 1.0) -> None:
        self.named = named.astype(np.float32)
        self.table = table.astype(np.float32)
        self.bias = float(bias)
        self.deadline_s = deadline_s

    @classmethod
    def load(cls, deadline_s: float = 1.0) -> InjectionScorer:
        """The head that ships with the runtime.

        Raises:
            ConfigError: see `read_head`.
        """
        head = read_head()
        return cls(head["named"], head["table"], float(head["bias"]), deadline_s)

    def logit(self, text: str) -> float:
        """Of one text."""
        return float(features(text) @ self.named) + _share(self.table, text) + self.bias

    def score_sync(self, texts: Sequence[str]) -> list[Mapping[str, float]]:
        """See `SyncScorer`."""
        return [{"injection": chance(self.logit(t))} for t in texts]

    async def score(self, texts: Sequence[str]) -> list[Mapping[str, float]]:
        """See `Scorer`."""
        return self.score_sync(texts)


class InjectionJudge:
    """The second stage, for whole texts.

    Its logit is `named @ features + sum(table[bucket]) / sqrt(buckets) + vector @ embedding + weight * c + bias`, c the
    highest logit of the first stage over the text's units and windows: an order in a long text is seen by itself.

    Args:
        cheap: the first stage.
        named, table, bias: as of `InjectionScorer`, of this stage.
        vector: float32, shape (embedding,).
        weight: of the first stage.
        band: the first stage's logit below which a text is not worth an embedding.
    """

    def __init__(
        self,
        cheap: InjectionScorer,
        named: NDArray[Any],
        table: NDArray[Any],
        vector: NDArray[Any],
        *,
        bias: float,
        weight: float,
        band: float,
    ) -> None:
        self.cheap = cheap
        self.named = named.astype(np.float32)
        self.table = table.astype(np.float32)
        self.vector = vector.astype(np.float32)
        self.bias, self.weight, self.band = bias, weight, band

    @classmethod
    def load(cls) -> InjectionJudge:
        """Both stages that ship with the runtime.

        Raises:
            ConfigError: see `read_head`.
        """
        head = read_head()
        bias, weight, band = (float(x) for x in head["judge_scalars"])
        return cls(
            InjectionScorer(head["named"], head["table"], float(head["bias"])),
            head["judge_named"], head["judge_table"], head["judge_vector"], bias=bias, weight=weight, band=band,
        )  # fmt: skip

    def first(self, text: str) -> float:
        """The first stage's highest logit over units and windows."""
        return max((self.cheap.logit(window) for window in windows(text)), default=self.cheap.bias)

    def logit(self, text: str, embedding: NDArray[np.float32], first: float) -> float:
        """Of one text, by its embedding and its `first`."""
        own = float(features(text) @ self.named) + _share(self.table, text) + float(embedding @ self.vector)
        return own + self.weight * first + self.bias
