"""Named features of what a text wants: whom or what a harmful word is aimed at, and in which frame.

An embedding sees the topic: "kill a process" and "kill a person" lie close together. These features are cheap,
explicit signs of the difference: a request or a definition, a person, a group or a thing as target, a game or a
story as frame. They read English. The lists are the project's own.
"""

from __future__ import annotations

import re
from typing import Final

import numpy as np
from numpy.typing import NDArray

from personae_runtime.policy.normalize import normalize


def _words(*alternatives: str) -> re.Pattern[str]:
    return re.compile(r"\b(?:" + "|".join(alternatives) + r")\b")


_HARM_VERB = (
    r"kill(?:s|ed|ing|er)?|murder(?:s|ed|ing)?|stab(?:s|bed|bing)?|sho(?:o?t)(?:s|ing)?|strangl\w+|chok(?:e|es|ed|ing)|"
    r"behead\w*|decapitat\w+|slaughter\w*|butcher\w*|massacr\w+|assassinat\w+|execut(?:e|ed|ing)|poison\w*|drown\w*|"
    r"bomb(?:s|ed|ing)?|blow(?:ing)? up|burn(?:s|ed|ing)?(?: down)?|set fire|tortur\w+|rap(?:e|ed|ing|ist)|beat(?:s|"
    r"ing)?|"
    r"hit(?:ting)?|punch\w*|kick\w*|smash\w*|crush\w*|break|shatter\w*|hurt(?:ing)?|harm(?:ing)?|injur\w+|attack\w*|"
    r"assault\w*|kidnap\w*|abduct\w*|maim\w*|mutilat\w+|cripple|suffocat\w+|destroy\w*|annihilat\w+|eradicat\w+|"
    r"exterminat\w+|eliminat\w+|wip(?:e|ing) out|get(?:ting)? rid of|take out|knock out|slit|slic(?:e|ing)|carve|gut|"
    r"hang|lynch\w*|run over|gas|hunt(?:ing)?(?: down)?|demolish\w*|ruin|terroris\w+|terroriz\w+|euthani[sz]e|stalk\w*|"
    r"threaten\w*|bully\w*|humiliat\w+|blackmail\w*|drug|trap|cut(?:ting)?|pierc\w+|hammer\w*|rip(?:ping)?|obliterat\w+"
)
_KIN = (
    r"wife|husband|girlfriend|boyfriend|ex(?:[- ](?:wife|husband|girlfriend|boyfriend|partner))?|partner|mother|mom|"
    r"mum|"
    r"father|dad|parents?|sister|brother|son|daughter|child|children|kids?|baby|uncle|aunt|cousin|grand\w+|"
    r"neighbou?rs?|"
    r"boss|manager|co-?workers?|colleagues?|employees?|teachers?|professor|students?|class(?:mates?)?|friends?|"
    r"room-?mate|"
    r"flat-?mate|landlord|tenants?|therapist|doctor|patients?|nanny|babysitter|date|rival|family|nephew|niece|gardener|"
    r"plumber|driver|cleaner|customers?|clients?|competitor|mailman|postman|roommates?|crush|enemy|enemies|stepmother"
)
_PERSON = (
    rf"some ?(?:one|body)|any ?(?:one|body)|(?:a|an|another|the|that|this) (?:\w+ )?(?:person|human(?: being)?|man|"
    rf"woman|"
    rf"girl|boy|guy|stranger|child|kid|baby|cop|policeman|police officer|politician|judge|teacher|student|pedestrian|"
    rf"homeless\w*|teenager|lady|neighbou?r|witness|guard|crowd)|people|persons|humans?|humanity|"
    rf"him|her|them|you|strangers|kids|children|women|men|girls|boys|cops|"
    rf"(?:my|your|his|her|our|their|a|the) (?:\w+ ){{0,2}}(?:{_KIN})|president|prime minister|crowds?|school|hospital|"
    r"church|mosque|synagogue|stadium|city|town|village"
)
_GROUP = (
    r"jews?|jewish|muslims?|islam|christians?|catholics?|hindus?|sikhs?|buddhists?|atheists?|blacks?|african\w*|"
    r"asians?|"
    r"arabs?|mexicans?|latin[oax]s?|hispanics?|indians?|chinese|japanese|pakistani\w*|turks?|poles|russians?|"
    r"americans?|"
    r"whites?|white (?:people|men|women)|gays?|gay (?:people|men)|lesbians?|homosexual\w*|bisexual\w*|asexual\w*|"
    r"lgbt\w*|"
    r"queers?|trans(?:gender|sexual)?s?|non-?binary|immigrants?|migrants?|refugees?|foreigners?|roma|gyps(?:y|ies)|"
    r"disabled|deaf|blind people|autistic\w*|women|females?|elderly|old people|poor people|homeless|fat people|"
    r"natives?|"
    r"minorit(?:y|ies)|races?|that religion|indigenous"
)
_PRIVATE = (
    r"(?:home |private |email |street |ip )?address|(?:phone|mobile|cell)[\w ]{0,8} ?number|passwords?|log-?ins?|pin|"
    r"(?:medical|health|tax|bank|criminal|court|phone|school|browser|browsing|dental|employment)[\w ]{0,10} "
    r"(?:records?|histor(?:y|ies)|details|statements?|data|files?)|credit (?:card|score)[\w ]{0,8}|(?:social security|"
    r"passport|licen[cs]e|account|insurance)[\w ]{0,8} ?number|immigration status|sexual orientation|salary|earns?|"
    r"(?:text )?messages|emails|location|whereabouts|diagnosis|medication|date of birth|birthday|nudes?|diary|"
    r"bank account|criminal record|religion|search history|birth certificate"
)

_PATTERNS: Final[dict[str, re.Pattern[str]]] = {
    "explicit": _words(
        r"cocks?|dicks?|pussy|cunts?|cum(?:ming|s|shot)?|orgasm\w*|horny|blow ?jobs?|hand ?jobs?|nipples?|clit\w*|"
        r"erection|penis\w*|vaginas?|anal|panties|boobs?|tits?|titties|breasts?|masturbat\w+|porn\w*|nudes?|naked|"
        r"moan(?:s|ed|ing)?|thrust\w*|cli(?:max|maxed)|ejaculat\w+|erotic\w*|fetish\w*|bdsm|dildo|ass|butt|sex|"
        r"sexual\w*|sexy|seduc\w+|undress\w*|aroused?|throbbing|genital\w*|incest\w*|whor\w+|sluts?|thighs?|lust\w*|"
        r"fuck(?:ed|ing)? (?:me|her|him|my|you)|lick(?:s|ed|ing)?|suck(?:s|ed|ing)?"
    ),
    "swear": _words(r"fuck\w*|shit\w*|bitch\w*|bastards?|asshole\w*|damn|motherfuck\w*|bullshit|crap|piss\w*|wtf"),
    "insult": _words(
        r"idiots?|stupid|morons?|dumb\w*|losers?|pathetic|worthless|ugly|disgusting|scum\w*|trash|retard\w*|imbeciles?|"
        r"cretins?|pigs?|fat|filthy|coward|creep|freaks?|clown|cucks?|whores?|sluts?|bitch(?:es)?|cunts?|assholes?|"
        r"degenerates?|brainless|shut up|rot in hell|go to hell|screw you|fuck you|fuck off|lowlifes?|garbage|useless"
    ),
    "slur": _words(
        r"nigg\w+|fag(?:s|got\w*)?|kikes?|trann(?:y|ies)|chinks?|spics?|dykes?|towel ?heads?|rag ?heads?|pakis?|"
        r"wetbacks?|"
        r"gooks?|coons?|goy(?:im)?|jew (?:rats?|bastards?)|shemales?|sand ?n\w+|beaners?|crackers|half[- ]?breeds?|"
        r"feminazis?|libtards?|darkies|savages|zionists?|globalists?|shitskins?|groypers?|white power|heil|14 ?88|reich"
    ),
    "contempt": _words(
        r"vermin|inferior|superior|sub-?human\w*|parasites?|plague|cancer|infest\w*|invaders?|invasion|filth|"
        r"breed(?:ing)?|"
        r"rats?|cockroach\w*|animals|primitive|uncivili[sz]ed|master race|pure|purity|degenerat\w+|abominations?|"
        r"replac(?:e|ing) us|taking over|control the (?:media|banks|world)|deport\w*|go back to|don'?t belong|"
        r"not (?:real|human|people)|mentally ill|criminals|terrorists?|lazy|exterminat\w+|genocide|wiped? out|hate"
    ),
    "violence": _words(_HARM_VERB),
    "aimed": re.compile(rf"\b(?:{_HARM_VERB})\b(?:\W+\w+){{0,2}}?\W+(?:{_PERSON}|{_GROUP})\b"),
    "possessed": re.compile(rf"\b(?:{_HARM_VERB})\b(?:\W+\w+){{0,2}}?\W+(?:(?:{_PERSON})'s?|their|her|his)\s\w+"),
    "threat": re.compile(
        r"\b(?:i(?:'ll| will| am going to|'m going to|'m gonna| wanna| want to| would love to)|we (?:will|should|must)|"
        rf"let'?s|gonna|should be|deserves? to(?: be)?|hope (?:you|he|she|they)|"
        rf"needs? to be) (?:\w+ )?(?:{_HARM_VERB}|die|"
        r"suffer|bleed|hanged|shot|gassed|beaten|raped)\b"
    ),
    "gore": _words(
        r"blood\w*|bleed\w*|guts|gore|gory|flesh|corpses?|skulls?|intestines|brains|severed|limbs?|throats?|screams?|"
        r"screaming|dead bod(?:y|ies)|entrails|wounds?|stabbed|knife|gun|bullets?|head off|agony|dismember\w*"
    ),
    "self_harm": re.compile(
        r"\b(?:suicid\w+|kill(?:ing)? (?:my|your)sel\w+|self[- ]?harm\w*|self[- ]?injur\w+|cut(?:ting)? (?:my|"
        r"your)sel\w+|"
        r"hurt(?:ing)? (?:my|your)sel\w+|end(?:ing)? (?:my|your|it) (?:own )?(?:life|all)|overdos\w+|want to die|"
        r"wanna die|better off dead|relaps\w+|razor\w*|hang(?:ing)? (?:my|your)sel\w+|starv\w+ (?:my|your)sel\w+|"
        r"purg\w+|"
        r"pro-?ana|anorexi\w+|bulimi\w+|slit (?:my|your) wrists?|die like|go out like|painless(?:ly)?|scars?|"
        r"(?:my|your) own (?:artery|wrists?|arms?|veins?|life|death|neck))\b"
    ),
    "crime": _words(
        r"steal(?:ing)?|rob(?:bing)?|burgl\w+|shoplift\w*|hack(?:ing)?|launder\w*|counterfeit\w*|forg(?:e|ing)|"
        r"smuggl\w+|"
        r"fraud\w*|scam\w*|embezzl\w+|brib\w+|extort\w+|kidnapping|hostages?|traffick\w+|terroris[mt]\w*|arson|"
        r"cocaine|heroin|meth|crack|marihuana|marijuana|weed|ecstasy|mdma|lsd|fentanyl|pills|drugs?|pedophil\w*|"
        r"paedophil\w*|"
        r"ransomware|malware|phishing|explosives?|pipe bomb|weapons?|firearms?|poison|nerve agent|break(?:ing)? into|"
        r"disable the alarm|pick (?:a|the) lock|launder|evad\w+ tax\w*|fake (?:id|passport)|identity theft|hijack\w*"
    ),
    "group": _words(_GROUP),
    "denied": re.compile(
        rf"\b(?:{_GROUP})\b.{{0,40}}?\b(?:(?:should|must|deserve)(?:n'?t| not| never)?|not|barred|banned|denied|less|"
        r"kicked|excluded|stripped|forbidden|stay out|refused|fired|expelled)\b.{0,60}?\b(?:vot\w+|marr\w+|rights?|"
        r"jobs?|"
        r"work\w*|earn|paid|pay|wages|educat\w*|schools?|universit\w+|colleges?|visas?|enter|allowed|health ?care|"
        r"hospital|benefits?|housing|office|practi[cs]\w+|decisions?|kids|children|adopt\w*|own|property|tv|"
        r"discriminated|plane|bus|serve|hold|represented|freedom|speak|country|live here|same)\b"
    ),
    "justified": re.compile(
        r"\b(?:(?:right|good|justified|best|better|morally|correct|fair|necessary|great|acceptable|ok|"
        r"okay)\b.{0,40}\b(?:to|"
        r"thing|for|that|if|why)|justif\w+|benefits? of|advantages? of|replicat\w+|recreat\w+|repeat\w*|restor\w+|"
        r"bring back|reasons? why|success of|deserved|never happened|was a hoax|methods?.{0,40}today|like under)\b"
    ),
    "request": re.compile(
        r"^\W*(?:(?:please|hey|hi|so|ok)\W+)*(?:how (?:do|can|could|should|would|might|to)\b|where (?:do|can|could|"
        r"should)\b|"
        r"what(?:'s| is| are) (?:the |a |some )?(?:best|good|easiest|fastest|quickest|safest|most)\b|what (?:can|"
        r"should|steps|"
        r"do)\b|(?:can|could|would) you\b|(?:tell|show|teach|help|give|explain|write|list|describe)\b|i (?:want|"
        r"need) (?:to|you"
        r"|help)|steps?\b|ways? to\b)"
    ),
    "first_person": _words(r"i|i'm|i'll|me|my|we|our"),
    "addressed": _words(r"you|your|you're|u|ur|yourself"),
    "definition": re.compile(
        r"^\W*(?:what (?:is|are|was|were|does|kind|do(?:es)? it mean)\b(?! (?:the |a |some )?(?:best|good|easiest|"
        r"my|your))|"
        r"define\b|explain (?:what|the (?:term|word|idea|meaning))|who (?:is|was|were)\b)|\b(?:mean(?:s|ing)?|"
        r"definition|"
        r"difference between|defined as|stand for)\b"
    ),
    "history": re.compile(
        r"^\W*(?:what happened|what (?:was|were) the|when (?:was|were|did)|why (?:did|were)|how (?:did|was|were|"
        r"many)|who (?:was|"
        r"were|did)|which|during|in (?:what|which|1\d{3}|20\d\d))\b|\b(?:histor\w+|world war|during the|war of|"
        r"century|1[5-9]\d\d|siege|empire|conquest|trial of|memorial)\b"
    ),
    "fiction": _words(
        r"novels?|books?|stor(?:y|ies)|films?|movies?|tv|shows?|series|scenes?|characters?|plot|screenplay|scripts?|"
        r"plays?|"
        r"stage|theatre|theater|game(?:s|play)?|video ?games?|gaming|level|boss fight|minecraft|fortnite|skyrim|"
        r"zelda|gta|"
        r"grand theft auto|call of duty|counter[- ]?strike|sims|chess|checkers|judo|karate|boxing|wrestling|fencing|"
        r"shooting range|paintball|poker|monopoly|cosplay|actor|directing|fantasy|comics?|anime|manga|cartoon|"
        r"episode|season|dungeons|d&d|rpg|mario|pokemon|batman|joker|star wars|potter|sherlock|villain|hero|fake"
    ),
    "thing": _words(
        r"process(?:es)?|threads?|python|linux|windows|server|container|daemon|program|apps?|database|browser|"
        r"downloads?|"
        r"computer|phone|battery|time|weeds?|garden|lawn|ants?|bugs?|bed bugs|mosquito\w*|wasps?|slugs?|rats in|"
        r"mice|mold|"
        r"bacteria|germs|virus|cancer|balloons?|fish|shrimp|lobster|chicken|pig|turkey|meat|eggs?|garlic|nuts?|coconut|"
        r"avocado|ice|wood|walls?|drywall|nails?|tack|pi[nñ]ata|photo\w*|picture|portrait|camera|film|pipe|bottle|beer|"
        r"record|exam|test|interview|speech|workout|goals?|deadline|clutter|fear|doubts?|habit|stress|boredom|"
        r"competition|"
        r"market|budget|debt|bill|price|deal|party|joke|audience|stage|kidney stones|calories|lights?|engine|tyres?|"
        r"tires?|dish|sauce|recipe|rice|carrots?|olives?|grapes?|beans?|cats?|dogs?|llamas?|teapots?|trees?|ads|"
        r"pop-?ups?"
    ),
    "impossible": _words(
        r"fly|time ?travel\w*|teleport\w*|walk through walls|see through|x-ray vision|invisible|"
        r"breathe (?:under ?water|in "
        r"space)|speed of light|weather|moon|mars|sun(?:'s)?|black holes?|telepath\w*|levitat\w+|immortal\w*|"
        r"photosynthes\w+|"
        r"transform|shape-?shift|made of|volcano|lava|dinosaurs?|dragons?|unicorns?|concrete|gravity|time|magic|outrun|"
        r"lay eggs|live forever|universe|planets?|wings|gills|predict|read minds|melt|glow"
    ),
    "private": _words(_PRIVATE),
    "private_of": re.compile(
        rf"\b(?:(?:my|our|a|the|that|this|another|your) (?:[\w-]+ ){{0,2}}(?:{_KIN}|tailor|roofer|barista|lawyer|"
        rf"accountant|"
        r"electrician|trainer|dentist|nurse|waiter|waitress|mechanic|hairdresser|tutor|coach|intern|assistant)(?:'s|"
        r"s'| "
        rf"(?:earn|make|weigh))?|(?:other|some|random|famous) ?(?:people|one|body|women|person|celebrit)\w*'s?|"
        rf"celebrit(?:y|ies)\W*s?"
        rf"|someone(?: else)?'s)\b.{{0,40}}\b(?:{_PRIVATE})\b|\b(?:{_PRIVATE})\b of (?:my|a|some)\b|\b(?:how much|"
        rf"what).{{0,24}}"
        rf"\b(?:does|is) my (?:[\w-]+ ){{0,2}}(?:{_KIN})\b"
    ),
    "official": _words(
        r"customer (?:service|support|care)|support|help ?(?:line|desk)|office|headquarters|embassy|consulate|"
        r"white house|"
        r"police (?:station|department|in)|company|public|website|press|opening hours|ministry|town hall|museum|library"
    ),
    "negated": _words(
        r"not|never|don'?t|without|avoid\w*|prevent\w*|stop|stopping|protect\w*|against|help(?:ing)? (?:a|my|someone)"
    ),
    "quiet": _words(
        r"unnoticed|without (?:being caught|anyone|a trace|getting caught)|secretly|untraceable|get away with|nobody"
    ),
}

NAMES: Final = (
    *_PATTERNS,
    "request_aimed", "request_thing", "request_crime", "aimed_fiction", "aimed_definition", "aimed_history",
    "crime_fiction", "crime_definition", "group_contempt", "group_violence", "group_denied_impossible",
    "insult_addressed", "private_of_request", "justified_history", "justified_violence", "justified_group",
    "violence_thing_alone", "short",
)  # fmt: skip
"""The features in order; the last ones are conjunctions of the ones before."""


def intent(text: str) -> NDArray[np.float32]:
    """The features of a text, shape (len(NAMES),): 1 for each sign found, more for repeated words (log2 of 1 + count,
    at most 3); conjunctions are 0 or 1."""
    plain = " ".join(normalize(text).split())
    found = {
        name: min(3.0, float(np.log2(1 + sum(1 for _ in pattern.finditer(plain)))))
        for name, pattern in _PATTERNS.items()
    }
    has = {name: value > 0 for name, value in found.items()}
    harm = has["violence"] or has["crime"]
    target = has["aimed"] or has["possessed"]
    both = (
        has["request"] and target,
        has["request"] and has["violence"] and not target,
        has["request"] and has["crime"] and not has["fiction"],
        target and has["fiction"],
        target and has["definition"] and not has["request"],
        target and has["history"] and not has["justified"],
        has["crime"] and has["fiction"],
        has["crime"] and has["definition"] and not has["request"],
        has["group"] and has["contempt"],
        has["group"] and has["violence"],
        has["group"] and has["impossible"],
        has["insult"] and has["addressed"],
        has["private_of"] and not has["fiction"],
        has["justified"] and has["history"],
        has["justified"] and harm,
        has["justified"] and has["group"],
        has["violence"] and has["thing"] and not target,
        len(plain) < 80,
    )
    return np.array([*found.values(), *map(float, both)], dtype=np.float32)
