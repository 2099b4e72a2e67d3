"""A small grammar for the free text of training requests: messages, tasks, queries, items, titles and songs.

A request's text ends where the request goes on, and only the whole sentence tells where that is: "in", "to", "on", "for"
and "by" stand in texts too. So texts must be as varied as the words around them. Lines are patterns as in `lexicon.py`,
whose slots may also name a rule of `RULES`. Used for training only; no line is a held-out one, which `generate.py` checks.
"""

VERB = """bring take buy sell find lose keep give show tell send get make break fix clean wash cook eat drink drive carry lift drop
catch throw hold pull push cut build draw paint write read sing play watch hear see meet call help teach learn ask answer open close
lock move turn start stop finish try use wear wait walk run swim climb jump sit stand sleep wake count pay spend save choose change
follow lead join leave visit miss love like hate need want know think feel believe understand explain describe promise
bake boil mix pour fill empty dry fold hang hide search check test weigh guard paste print sign copy cancel confirm charge""".split()
PAST = """brought took bought sold found lost kept gave showed told sent got made broke fixed cleaned washed cooked ate drank drove
carried lifted dropped caught threw held pulled pushed cut built drew painted wrote read sang played watched heard saw met called
helped taught learned asked answered opened closed locked moved turned started stopped finished tried used wore walked ran climbed
paid spent saved chose changed followed joined visited missed loved liked hated needed wanted knew felt explained promised
baked boiled mixed poured filled dried folded hid checked tested weighed printed signed copied cancelled confirmed charged""".split()
GONE = """came went ran slept fell stayed waited worked laughed cried smiled danced arrived returned started ended stopped broke
failed burned froze melted grew sank flew drove moved changed lies sits stands works sleeps waits stops starts ends hurts smells rings
shines""".split()
# Participles after a text or a name: "have it {done} in", "how is it {done} in". Training never has "said" or "scheduled" there.
DONE = """put rendered phrased worded formulated spoken sung typed noted listed entered stored recorded fixed arranged booked filed
marked made done set handled sorted taken covered listed kept displayed running going loaded ready visible printed signed spelt
transcribed pronounced written read used named""".split()

ING = [verb.removesuffix("e") + "ing" for verb in VERB if verb not in ("see", "sit", "cut", "dry", "like", "need", "want", "know")]

RULES = {
    "det": "the|the|the|the|my|my|your|our|his|her|their|this|that|a|a|some|every|no|both|these|those|any|another".split("|"),
    "adj": ["{w}", "very {w}", "too {w}", "so {w}", "really {w}", "not {w}", "almost {w}", "{w} and {w}", "{w} enough", "quite {w}", "as {w} as {np}"],
    "prep": "in on at to from with by for near under behind over after before without about through into across between beside around against of off past inside along until since like".split(),
    "np": ["{det} {w}", "{det} {w}", "{det} {w}", "{det} {w}", "{det} {w} {w}", "{w}", "{w} {w}", "{det} {w} {pp}", "{n} {w}", "{w} and {w}", "{first}",
           "{det} {w} and {det} {w}", "{first}'s {w}"],
    "pp": ["{prep} {det} {w}", "{prep} {det} {w}", "{prep} {det} {w}", "{prep} {det} {w} {w}", "{prep} {w}", "{prep} {first}", "{prep} {place}",
           "{prep} (me|you|him|her|us|them|it)", "{prep} {det} {w} {pp}"],
    "adv": """soon;again;later;already;early;late;together;outside;right away;once more;as usual;in time;on time;in the end;at last;for now;after all
        ;by hand;at home;upstairs;very well;too much;a lot;quickly;slowly;here;there;somewhere;anyway;instead;as well;too;first;twice;never;always;for ever
        ;at all;yet;{n} times;on foot;by {w};again and again;now""".replace("\n        ", "").split(";"),
    # Times are part of a message or a query, but not of a reminder's or an event's text: `when` is in no rule that those use.
    "when": """tonight;tomorrow;today;next week;last night;every day;all day;this weekend;yesterday;on monday;on friday;this morning;in the evening;at night;in a minute
        ;{n} {w} (ago|later|early|late);in {n} (days|minutes|hours|weeks);at {n};{n} (minutes|hours|days) (late|ago|early);after {w};before {w};until {w};at half past {n}""".replace("\n        ", "").split(";"),
    "subj": "I|you|he|she|we|they|it|everyone|someone|people|{np}|{np}|{np}|{np}|{first}|{first}|this|that|there".split("|"),
    "link": """is|are|was|were|will be|looks|feels|seems|got|became|must be|may be|has been|should be|could be|isn't|wasn't|won't be|sounds|stays""".split("|"),
    "modal": "can|could|will|would|should|must|may|might|cannot|can't|won't|don't|didn't|have to|want to|need to|used to|am going to".split("|"),
    "vt": PAST, "v": VERB, "vi": GONE, "ving": ING,
    "we": "I|you|we|they|you all|my friends|people".split("|"),
    "still": "||||still|also|not|already|really|now|just|never|only|always|probably|even".split("|"),
    "rest": ["{np}", "{np}", "{np} {pp}", "{pp}", "{pp}", "{pp}", "{adv}", "{pp} {adv}", "{np} {adv}", "{np} and {np}", "{first}", ""],
    "conj": "and|but|because|if|when|while|so|until|before|after|unless|since|that|than|as soon as|although|where|or".split("|"),
    "clause": ["{subj} {vt} {np}", "{subj} {vt} {np} {pp}", "{subj} {vt} {np} {adv}", "{subj} {vi} {adv}", "{subj} {vi} {pp}", "{subj} {vi}",
               "{subj} {link} {adj}", "{subj} {link} {adj} {adv}", "{subj} {link} {np}", "{subj} {link} {pp}", "{subj} {modal} {v} {np}",
               "{subj} {modal} {v} {np} {pp}", "{subj} {modal} {v} {adv}", "{subj} {modal} {v} {pp} {adv}", "{subj} {vt} {first} {np}", "{subj} (has|have|had) {vt} {np}",
               "{subj} (has|have) {adv} {vt}", "{subj}'s {w}", "{subj} {vt} {first} {pp}"],
    "going": ["{subj} (is|are|was|were|has been|will be) {still} {ving} {rest}", "(is|are|was|were) {subj} {still} {ving} {rest}", "(who|what|which {w}|nobody) (is|was|will be) {still} {ving} {rest}",
              "(it is|it's|it was) {still} {ving} {rest}", "(why|where|when|how) (is|are|was|were) {subj} {still} {ving} {rest}", "{subj} (has|have) {still} {vt} {rest}", "{we} {still} {v} {rest}",
              "(let|help|make) (me|him|us|them|her) {v} {rest}", "(let|help|make) (me|him|us|them|her) {v} {conj} {we} {v} {rest}", "{np} (got|was|were|is|are) {still} {vt} {rest}", "{conj} {we} {v} {rest}",
              "{v} {rest} {conj} {we} {v} {rest}", "{subj} {modal} {still} {v} {rest}", "{we} (are|were) {w} {pp}", "{ving} {rest}", "{np} {link} {pp} {pp}"],
    "order": ["{v} {np}", "{v} {np} {pp}", "{v} {np} {adv}", "{v} (me|him|her|us|them) {np}", "{v} (me|him|her|us|them) {pp}", "{v} {adv}", "{v} {pp}", "(don't|never|please|just|always) {v} {np}",
              "{v} {np} {conj} {clause}", "{v} and {v} {np}"],
    "ask": ["(do|did|can|could|will|would|should) {subj} {v} {np}", "(do|did|can|could|will|would|should) {subj} {v} {np} {pp}",
            "(do|did|can|could|will|would|should) {subj} {v} {pp} {adv}", "(who|what|nobody|someone) {vt} {np}", "(who|what) {vt} {np} {adv}", "(what|where|when|why|how) (is|are|was|were) {np}",
            "(what|where|when|why|how|who) (did|do|does|will|can|should) {subj} {v}", "(is|are|was|were) {np} {adj}", "(is|are|was|were) {subj} {adj} {adv}", "(is|are|was|were) {np} {pp}",
            "(how many|how much|which|whose) {w} {vt} {np}", "(have|has|had) {subj} {vt} {np} {adv}", "(why|how|when) {clause}"],
    "sentence": ["{going}"] * 12 + ["{going} {when}"] * 2 + ["{clause}"] * 8 + ["{order}"] * 5 + ["{ask}"] * 5 + ["{clause} {conj} {clause}", "{clause} {pp}", "{adv} {clause}", "{clause} {adv}", "{clause} {when}", "{clause} {when}", "{ask} {when}", "{order} {when}", "{when} {clause}", "(yes|no|ok|well|sorry|hey|thanks) {clause}",
                "{np} {pp}", "{np}", "{pp}", "{adj}", "(what|such) a {w} {w}", "{adv} {adv}", "{w} {w} {adv}", "{np} {conj} {np}", "{first} {conj} {first} {vi}"],
}

MESSAGE = ["{sentence}"] * 60
TASK = ["{v} {np}", "{v} {np} {pp}", "{v} {first} {pp}", "{v} {pp}", "{v} and {v} {np}", "{v} {np} and {v} {np}", "{p} {np}", "{w} {pp}", "{v} {np} {conj} {clause}",
        "see if {clause}", "ask {name} {pp}", "tell {first} that {clause}"] * 2
TITLE = ["{w} {w} {w}", "{w} {w}", "{w} (with|for|of|about|and) {np}", "{p} (with|for|of) {first}", "{first} and {first}", "{name}'s {w} {w}", "{name}'s {p}", "{W} {W}", "{P} {w}", "{w}", "{p}",
         "{w} and {w}", "(final|first|second|next|last|big|small|annual) {w} {w}", "{w} (class|lesson|talk|evening|day|dinner|check|visit) (with|for|of) {w}", "{w} (evening|morning|night|day|hour|time)"]
QUERY = ["{np} {pp}", "{w} {pp}", "{w} {w} {pp}", "{w} {prep} {w}", "{w} {prep} {w} and {w}", "{ask}", "{ask}", "how (to|do I|can I) {v} {np}", "how (to|do I|can I) {v} {np} {pp}",
         "{place} {w} {w}", "{place} {w}", "{w} {w} {place}", "{adj} {w}", "{w} {w} {w} {w}", "{p} {w} {p}", "{first} {P}", "{P} {P}", "{w} of {np}", "(types|uses|parts|rules|cost|causes|age|owner|number|list|time) of {np}",
         "is {np} {adj}", "(second|first|third|next|last) {w} {w}", "{w} (time|times|table|map|hours|number|list|name|guide|facts)", "{n} {w} {pp}", "{w} or {w}", "{w} and {w} {w}", "when {clause}", "{sentence}"]
ITEM = ["{w} {w}", "{w} {w} {w}", "{adj} {w}", "{w} (for|with|without|of|from) {w}", "{w} (for|with|from) {first}", "{n} {w} {w}", "{det} {w}", "{det} {w} {w}", "{w} and {w} {w}", "{w} {w} and {w}",
        "(a|one|two|six|ten) (pair|pint|roll|can|tube|sack|tray|pot|slice|litre|pound|tin|stick) of {w}", "{v} {np}", "{p} {p}", "{p}", "{w}"]
SONG = ["{W} (Under|Against|Without|Between|Before|After|Behind|Around|Across|Inside|Near|At|From) the {W}", "{W} and {W}", "{W} to {W}", "(Only|Maybe|Almost|Still|Just|Once|Even|No|Every|More) {W}",
        "the {w} (for|to|with|without|and) {name}", "{w} for {w}", "a {w} (in|to|with|without|on|and) the {w}", "{det} {w} {pp}", "{subj} {vi}", "{v} {np}", "{v} {pp}", "{W} {W} {W}", "The {W}", "A {W}", "My {W}",
        "{first}", "{first} and {first}", "{first}'s {W}", "{P} {P}", "({W}|{P}) (on|in|for|with) ({W}|{P})", "(Singing|Flying|Holding|Losing|Finding|Breaking) {W}", "(One|Two|Seven|Ten) {W}", "{np} {adv}"]
