"""Generates the demo data: requests to a phone and the tool calls that answer them.

    python3 generate.py --split held --count 1700 --seed 11 --out heldout.jsonl
    python3 generate.py --split train --count 20 --seed 1
    python3 generate.py --check

Each line is {"prompt": ..., "answer": ...}. The held-out split uses templates, names and words of its own; the prompt
that the project's README shows is in neither split.
"""

import argparse
import collections
import json
import pathlib
import random
import re
import sys

import lexicon
import sentences
from templates import ARGUMENTS, HELD, PREFIX, SUFFIX, SUFFIX_AFTER_VERBATIM, TRAIN

HELD_SEED = 11
README_PROMPT = "wake me at half past six tomorrow"
WEIGHT = {"set_timer": 1.5, "send_message": 4, "call_contact": 2, "create_event": 3, "add_reminder": 2, "play_music": 3, "navigate_to": 1.5,
          "search_web": 3, "translate_text": 6, "add_to_list": 3}
PIECES = pathlib.Path(__file__).parent / "tokenizer.json"
VERBATIM = ("name|name1|msg|title|a_title|task|song|artist|playlist|place|to_place|city|app|query|phrase|item|list").split("|")
TEXT_ARGUMENTS = {"to", "text", "name", "title", "artist", "playlist", "place", "app", "query", "item", "list"}

ONES = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen".split()
TENS = "_ _ twenty thirty forty fifty sixty seventy eighty ninety".split()
DAYS = "monday tuesday wednesday thursday friday saturday sunday".split()
HELD_WORDS = {w.lower() for table in (lexicon.FIRST, lexicon.LAST, lexicon.RELATION, lexicon.PLACE, lexicon.SPOT,
                                      lexicon.WORDS, lexicon.APP, lexicon.LISTS)
              for entry in set(table["held"]) - set(table["train"]) for w in entry.split()}

# A template with one of these names its tool whatever verb it uses: then the verb may be exchanged.
NAMES_TOOL = re.compile(r"\b(alarm|timer|countdown|message|text|sms|calendar|diary|event|appointment|reminder|song|track|album|playlist|volume"
                        r"|sound|brightness|directions|route|weather|forecast|app|application|web|google|internet|translation|list)\b"
                        r"|\{(setting|photo|lang|list|a_title)\}|to \{name\} that")
VERBS = """set put make get have give let take keep place fix try bring leave run use start open begin create add turn switch change move
show find do say save push pull drop hold pick throw load help go order write enter check build prepare arrange manage choose select pass
offer deliver produce see want request print""".split()
WISHES = ["I'd like", "I would like", "I wish", "I'd love", "we need", "we want", "we would like", "we'd like", "let me have", "let us have",
          "how about", "what about", "I could use", "it is time for", "please get me", "maybe"]
WISHES_TO = ["I'd like to", "I would like to", "I wish to", "I'd love to", "we need to", "we want to", "we'd like to", "let me", "let us",
             "I am going to", "I plan to", "help me", "it is time to", "is it possible to", "can we", "may I", "can I", "could I", "I'd rather"]


def words_of(n, rng):
    """A number from 0 to 100 in words."""
    if n == 100:
        return rng.choice(["one hundred", "a hundred", "hundred"])
    if n < 20:
        return ONES[n]
    return TENS[n // 10] + (rng.choice([" ", " ", "-"]) + ONES[n % 10] if n % 10 else "")


def capital(text):
    return text[:1].upper() + text[1:]


def skeletons(templates):
    """Every template with its choices made, in lower case and without punctuation: what training must not contain."""
    def expand(pattern):
        m = re.search(r"\(([^()]*)\)", pattern)
        if m is None:
            return [skeleton(pattern)]
        return [e for option in m[1].split("|") for e in expand(pattern[: m.start()] + option + pattern[m.end() :])]
    return {e for lines in templates.values() for line in lines for e in expand(line)}


def skeleton(pattern):
    return " ".join(re.findall(r"[\w{}']+", pattern.lower()))


# Words that no list of the training split has; "drive" is a verb too and "may" a modal one, as they are in training.
HELD_ONLY = HELD_WORDS - {"drive", "may"} - {w.lower() for table in (lexicon.FIRST, lexicon.LAST, lexicon.RELATION, lexicon.PLACE, lexicon.SPOT, lexicon.WORDS,
                                                  lexicon.APP, lexicon.LISTS) for entry in table["train"] for w in entry.split()}
HELD_SKELETONS = skeletons(HELD)


def held_texts():
    """Matches the held-out free texts: as with templates, training must not contain their wording."""
    lines = {line for table in (lexicon.MESSAGE, lexicon.QUERY, lexicon.SONG, lexicon.TITLE) for line in table["held"] if re.search("[a-zA-Z]{3}", re.sub(r"\{\w+\}", "", line))}
    return re.compile("|".join(re.sub(r"\{\w+\}", r"[\\w ]+", line) for line in sorted(lines)), re.IGNORECASE)


HELD_TEXTS = held_texts()


class Sampler:
    """Draws (prompt, answer) pairs; a training sample never has the wording of a held-out template. `templates` and `names` name a split each; both are equal in the shipped files."""

    def __init__(self, seed, templates, names=None):
        self.rng = random.Random(seed)
        self.templates = {"train": TRAIN, "held": HELD}[templates]
        self.split = names or templates
        self.tools = list(ARGUMENTS)
        self.weights = [WEIGHT.get(tool, 1) for tool in self.tools]
        self.words = lexicon.WORDS["train"] + lexicon.MORE_WORDS
        pieces = json.loads(PIECES.read_text(encoding="utf-8"))["pieces"] if PIECES.exists() else []
        self.pieces = [piece for piece in pieces if re.fullmatch("[a-z]+", piece)]

    # Building blocks

    def pick(self, *options):
        return self.rng.choice(options)

    def chance(self, p):
        return self.rng.random() < p

    def choose(self, pattern):
        """Resolves every `(a|b|)` of a pattern, innermost first."""
        while (m := re.search(r"\(([^()]*)\)", pattern)) is not None:
            pattern = pattern[: m.start()] + self.rng.choice(m[1].split("|")) + pattern[m.end() :]
        return pattern

    def pseudo(self):
        """A word that exists nowhere: syllables, pieces of the vocabulary, two words in one, now and then random characters."""
        r = self.rng
        while True:
            kind = r.random()
            if kind < 0.25 and self.pieces:
                # Every piece must be copied as well as the frequent ones, whatever stands beside it.
                word = "".join(r.choice(self.pieces) for _ in range(r.choice([1, 2, 2, 3, 3, 4])))[:12]
            elif kind < 0.35:
                word = r.choice(lexicon.WORDS["train"]) + r.choice(lexicon.WORDS["train"] + ["er", "ing", "s", "ly", "ed", "ville", "son", "ia", "y"])
                word = word if len(word) < 14 else word[3:]
            elif kind < 0.44:
                word = "".join(r.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(r.randint(2, 8)))
            else:
                onset = "b c d f g h j k l m n p r s t v w z br ch cl cr dr fl fr gl gr kl kr ph pl pr qu sh sk sl sp st str th tr tw y".split() + [""]
                nucleus = "a e i o u a e i o u ai au ea ee ei ie oa oo ou y".split()
                coda = ["", "", "", ""] + "b ck d f g k l ll m n nd ng nt p r rd rk rn rt s ss st t th x z".split()
                word = "".join(r.choice(onset) + r.choice(nucleus) + (r.choice(coda) if self.chance(0.5) else "")
                               for _ in range(r.choice([1, 2, 2, 2, 3, 3])))
            if self.chance(0.12):  # copying must survive repeated pieces
                at = r.randrange(len(word))
                word = r.choice([word + word, word + "ss", word[: at + 1] + word[at:], word + word[-2:]])[:14]
            if self.chance(0.04):  # letters outside ASCII are two tokens each
                at = r.randrange(len(word))
                word = word[:at] + r.choice("éèêáàâäåãóòôöøõúùûüíîïñçčšžłœæß") + word[at + 1 :]
            if len(word) > 1 and word not in HELD_WORDS:
                return word

    def word(self):
        if self.split == "held":
            return self.rng.choice(lexicon.WORDS["held" if self.chance(0.6) else "train"])
        return self.pseudo() if self.chance(0.3) else self.rng.choice(self.words)

    def first(self):
        if self.split == "train" and self.chance(0.45):
            return capital(self.pseudo())
        return self.rng.choice([n for n in lexicon.FIRST[self.split] if " " not in n])

    def name(self, single=False):
        r = self.rng
        if self.split == "train" and self.chance(0.08):
            return self.word()
        if self.chance(0.12):
            return r.choice(lexicon.RELATION[self.split])
        if single or self.chance(0.6):
            return self.first()
        if self.chance(0.2):
            return r.choice([n for n in lexicon.FIRST[self.split] if " " in n])
        if self.split == "train" and self.chance(0.4):
            return self.first() + " " + capital(self.pseudo())
        return self.first() + " " + r.choice(lexicon.LAST[self.split])

    def free(self, table, more):
        """Text from a table of content patterns; in training, from `more` too, and never a held-out one."""
        while True:
            lines = more if self.split == "train" and self.chance(0.6) else table[self.split]
            text = self.fill(self.rng.choice(lines))
            if self.split == "held" or (len(text) <= 80 and not HELD_TEXTS.fullmatch(text)):
                return text

    def fill(self, pattern):
        """Resolves the choices and slots of a content pattern."""
        text = self.choose(pattern).strip()
        fill = {"w": self.word, "W": lambda: capital(self.word()), "p": self.pseudo, "P": lambda: capital(self.pseudo()),
                "name": self.name, "first": self.first, "place": self.city,
                "n": lambda: (str if self.chance(0.5) else lambda n: words_of(n, self.rng))(self.rng.randint(2, 12))}
        text = re.sub(r"\{(\w+)\}", lambda m: fill[m[1]]() if m[1] in fill else self.fill(self.rng.choice(sentences.RULES[m[1]])), text)
        return re.sub(" +", " ", text).strip()

    def city(self):
        if self.split == "train" and self.chance(0.35):
            return " ".join(capital(self.pseudo() if self.chance(0.7) else self.word()) for _ in range(self.pick(1, 1, 1, 1, 2, 2, 3)))
        return self.rng.choice(lexicon.PLACE[self.split])

    # Times and days

    def clock(self, meridiem=None):
        """(spoken time, "HH:MM"). `meridiem` forces one without saying it: the day phrase already does."""
        r = self.rng
        if meridiem is None and self.chance(0.03):
            return r.choice([("noon", "12:00"), ("midnight", "00:00"), ("midday", "12:00")])
        minute = r.choice([0, 0, 0, 15, 30, 30, 45, 5 * r.randint(0, 11), r.randint(0, 59)])
        hour = r.randint(1, 12)
        if meridiem is None and self.chance(0.12):
            hour = r.choice([0] + list(range(13, 24)) + list(range(1, 10)))
            text = f"{hour:02}{r.choice('::.')}{minute:02}"
            return text, f"{hour:02}:{minute:02}"
        said = ""
        if meridiem is None and self.chance(0.45):
            meridiem, said = r.choice([
                ("am", " am"), ("am", "am"), ("am", " a.m."), ("am", " AM"), ("am", " in the morning"), ("pm", " pm"), ("pm", "pm"),
                ("pm", " p.m."), ("pm", " PM"), ("pm", " in the evening"), ("pm", " in the afternoon"), ("pm", " at night")])
            if said == " at night":
                hour = r.randint(7, 11)
            elif said == " in the evening":
                hour = r.randint(4, 11)
            elif said == " in the afternoon":
                hour = r.choice([12, 1, 2, 3, 4, 5, 6])
            elif said == " in the morning":
                hour = r.randint(1, 11)
        elif meridiem is not None:
            hour = r.randint(1, 11)
        h24 = hour
        if meridiem == "pm":
            h24 = hour % 12 + 12
        elif meridiem == "am":
            h24 = hour % 12
        short = said.strip() in ("am", "pm", "a.m.", "p.m.", "AM", "PM")
        following = words_of(hour % 12 + 1, r)
        here = words_of(hour, r)
        if self.chance(0.12):
            following, here = str(hour % 12 + 1), str(hour)
        digits = f"{hour}{r.choice('::::.')}{minute:02}"
        spoken = []
        if minute == 0:
            spoken += [here, here + (" o'clock" if not short else ""), str(hour), f"{hour}:00", f"{here} {'sharp' if not said else ''}".strip()]
        else:
            spoken += [digits, digits]
            if minute < 10:
                spoken += [f"{here} {r.choice(['oh', 'o'])} {words_of(minute, r)}"]
            else:
                spoken += [f"{here} {words_of(minute, r)}"] * 2
            count = words_of(minute if minute <= 30 else 60 - minute, r) if self.chance(0.85) else str(minute if minute <= 30 else 60 - minute)
            unit = "" if minute % 5 == 0 and self.chance(0.7) else (" minute" if count in ("one", "1") else " minutes")
            # What "ten to twelve" and "half past twelve" mean with pm depends on which hour the pm belongs to: leave it out.
            if minute == 30:
                spoken += [f"half past {here}"] * 4
            elif minute == 15:
                spoken += [f"{r.choice(['', 'a '])}quarter {r.choice(['past', 'past', 'past', 'after'])} {here}"] * 4
            elif minute == 45 and hour < 11:
                spoken += [f"{r.choice(['', 'a '])}quarter {r.choice(['to', 'to', 'to', 'before'])} {following}"] * 4
            elif minute < 30:
                spoken += [f"{count}{unit} {r.choice(['past', 'past', 'past', 'after'])} {here}"] * 3
            elif hour < 11:
                spoken += [f"{count}{unit} {r.choice(['to', 'to', 'to', 'before'])} {following}"] * 3
        text = r.choice(spoken)
        if said in ("am", "pm") and not text[-1].isdigit():
            said = " " + said
        return text + said, f"{h24:02}:{minute:02}"

    def day(self):
        """(phrase with preposition, phrase without, value, meridiem it implies)."""
        r = self.rng
        kind = r.random()
        if kind < 0.3:
            base = ("tomorrow", "tomorrow", "tomorrow")
        elif kind < 0.42:
            base = ("today", "today", "today")
        elif kind < 0.52:
            phrase, meridiem = r.choice([("tonight", "pm"), ("this evening", "pm"), ("this afternoon", "pm"), ("this morning", "am")])
            return phrase, phrase, "today", meridiem
        else:
            d = r.choice(DAYS)
            shown = capital(d) if self.chance(0.5) else d
            base = (r.choice(["on ", "on ", "on ", "this ", ""]) + shown, shown, d)
        if self.chance(0.2) and base[2] != "today":
            part, meridiem = r.choice([(" morning", "am"), (" afternoon", "pm"), (" evening", "pm"), (" night", "pm")])
            return base[0] + part, base[1] + part, base[2], meridiem
        return *base, None

    def clock_for(self, meridiem, phrase):
        """A time that goes with a day phrase."""
        while True:
            text, value = self.clock(meridiem)
            hour = int(value[:2])
            if meridiem is None or ("morning" in phrase) or ("afternoon" in phrase and 12 <= hour <= 18) or (
                    "evening" in phrase and hour >= 16) or ("night" in phrase and hour >= 18):
                return text, value

    def when(self, args, preposition, need_day=False, need_time=True, day_chance=0.65):
        """A joint time and day phrase; fills `time` and `day`."""
        has_day = need_day or self.chance(day_chance)
        if not has_day:
            text, args["time"] = self.clock()
            return f"at {text}" if preposition else text
        on_day, bare, args["day"], meridiem = self.day()
        if not need_time and self.chance(0.4) and meridiem is None:
            return on_day if preposition else bare
        text, args["time"] = self.clock_for(meridiem, bare)
        if self.chance(0.55):
            return f"{'at ' if preposition else ''}{text} {on_day}"
        return f"{on_day if preposition else bare} at {text}"

    # Slots

    def slot(self, slot, args):
        """The text for `{slot}`; writes the arguments that follow from it."""
        r = self.rng
        if slot in ("name", "name1"):
            name = self.name(single=slot == "name1")
            args["name"] = name
            if self.split == "train" and name.islower() and name not in lexicon.RELATION["train"]:
                return "my " + name
            return ("my " if name in lexicon.RELATION[self.split] and name not in ("home", "work") and self.chance(0.5) else "") + name
        if slot == "saying":
            return self.pick("saying", "that says", "with the text")
        if slot in ("msg", "phrase"):
            args["text"] = self.free(lexicon.MESSAGE, sentences.MESSAGE)
            return args["text"]
        if slot == "done":
            return self.pick(self.pseudo() + "ed", self.pseudo() + "en", self.pseudo()) if self.chance(0.35) else r.choice(sentences.DONE)
        if slot == "speaker":
            args["speaker"] = True
            return self.pick("on speaker", "on the speaker", "on speakerphone", "with the speaker on", "on loudspeaker", "on speaker phone")
        if slot in ("title", "a_title"):
            title = args["title"] = self.free(lexicon.TITLE, sentences.TITLE)
            if slot == "title" or "'s" in title:
                return title
            article = "an" if title[0] in "aeiouAEIOU" else "a"
            return self.pick(article, article, article, "the", "my") + " " + title
        if slot == "task":
            args["text"] = self.free(lexicon.TASK, sentences.TASK)
            return args["text"]
        if slot == "song":
            args["title"] = self.free(lexicon.SONG, sentences.SONG)
            return args["title"]
        if slot == "artist":
            args["artist"] = self.free(lexicon.ARTIST, lexicon.ARTIST["train"])
            return args["artist"]
        if slot == "playlist":
            args["playlist"] = self.pick(self.word(), self.word() + " " + self.word(), capital(self.word()), capital(self.word()) + " " + capital(self.word()))
            return args["playlist"]
        if slot == "level":
            n = r.choice([r.randint(0, 100), 5 * r.randint(0, 20), 10 * r.randint(0, 10)])
            if self.chance(0.12):
                text, n = r.choice([("half", 50), ("maximum", 100), ("max", 100), ("the maximum", 100), ("full", 100), ("fifty fifty", 50),
                                    ("minimum", 0), ("the minimum", 0), ("zero", 0)])
            else:
                text = self.pick(f"{n}", f"{n}%", f"{n} percent", words_of(n, r), words_of(n, r) + " percent", words_of(n, r) + " per cent", f"{n} %")
            args["level"] = n
            return text
        if slot in ("mute", "loudest", "dimmest", "brightest"):
            args["level"] = 100 if slot in ("loudest", "brightest") else 0
            return self.choose(self.pick(*{
                "mute": ["(mute|silence) (the phone|my phone|the sound|everything|the volume|the speaker)"],
                "loudest": ["(turn|put) the (volume|sound) (all the way up|to the max)", "(full|maximum|max|highest) (volume|sound)"],
                "dimmest": ["(turn|put) the (brightness|screen brightness) all the way down",
                            "(minimum|lowest|min) (brightness|screen brightness)"],
                "brightest": ["(turn|put) the (brightness|screen brightness) all the way up",
                              "(full|maximum|max|highest) (brightness|screen brightness)"]}[slot]))
        if slot == "setting":
            args["setting"] = r.choice(sorted(lexicon.SETTING))
            return r.choice(lexicon.SETTING[args["setting"]])
        if slot in ("on", "enable"):
            args["state"] = self.pick("on", "off")
            if slot == "on":
                return args["state"]
            return {"on": self.pick("enable", "activate", "start"), "off": self.pick("disable", "deactivate", "stop", "kill")}[args["state"]]
        if slot in ("place", "to_place"):
            if self.chance(0.3):
                args["place"] = r.choice(lexicon.SPOT[self.split])
                if self.chance(0.25):
                    args["place"] = self.pick("nearest", "next", "closest") + " " + args["place"]
                text = "the " + args["place"]
            elif self.chance(0.1):
                text = args["place"] = self.pick("home", "work") if slot == "place" else "home"
                if slot == "to_place":
                    return text
            elif self.chance(0.15):
                street = self.pick("Street", "Road", "Avenue", "Lane", "Square", "Drive")
                base = capital(self.pseudo()) if self.split == "train" else r.choice(lexicon.LAST["held"] + lexicon.FIRST["held"][:20])
                text = args["place"] = (f"{r.randint(1, 199)} " if self.chance(0.6) else "") + f"{base} {street}"
            elif self.chance(0.1):
                text = args["place"] = self.first() + "'s " + self.pick("house", "place", "flat", "office")
            else:
                text = args["place"] = self.city()
            return ("to " if slot == "to_place" else "") + text
        if slot == "city":
            args["place"] = self.city()
            return args["place"]
        if slot in ("mode", "modeverb"):
            args["mode"] = self.pick("walking", "driving", "cycling", "transit")
            if slot == "modeverb":
                args["mode"] = self.pick("walking", "driving", "cycling")
                return {"walking": "walk", "driving": "drive", "cycling": self.pick("cycle", "bike")}[args["mode"]]
            return self.pick(*{"walking": ["on foot", "walking", "by foot"], "driving": ["by car", "driving", "with the car"],
                               "cycling": ["by bike", "cycling", "by bicycle", "on my bike"],
                               "transit": ["by bus", "by train", "by public transport", "by tram", "with public transport"]}[args["mode"]])
        if slot in ("day", "dayw", "dayx"):
            on_day, bare, args["day"], meridiem = self.day()
            while slot == "day" and meridiem:
                on_day, bare, args["day"], meridiem = self.day()
            return bare if slot == "dayx" else on_day
        if slot == "daily":
            text, args["day"] = r.choice([("every day", "daily"), ("each day", "daily"), ("daily", "daily"),
                                          ("every weekday", "weekdays"), ("on weekdays", "weekdays"), ("each weekday", "weekdays"),
                                          ("on weekends", "weekends"), ("every weekend", "weekends"), ("at weekends", "weekends")])
            return text
        if slot == "time":
            text, args["time"] = self.clock()
            return text
        if slot == "when":
            return self.when(args, True)
        if slot == "whenfor":
            return self.when(args, False)
        if slot == "whend":
            return self.when(args, True, need_day=True)
        if slot == "whendfor":
            return self.when(args, False, need_day=True)
        if slot == "maybewhen":
            return self.when(args, True, need_time=False, day_chance=0.75)
        if slot == "maybewhenfor":
            return self.when(args, False, need_time=False, day_chance=0.75)
        if slot in ("amount", "amount1"):
            unit = self.pick("seconds", "minutes", "minutes", "minutes", "hours")
            n = r.randint(1, 12) if unit == "hours" else r.choice([r.randint(1, 99), 5 * r.randint(1, 12), r.randint(1, 20)])
            count = self.pick(str(n), words_of(n, r))
            args["amount"], args["unit"] = n, unit
            if slot == "amount1":
                return count + self.pick(" ", " ", "-") + unit[:-1]
            if self.chance(0.1):
                text, args["amount"], args["unit"] = r.choice([
                    ("half an hour", 30, "minutes"), ("a quarter of an hour", 15, "minutes"), ("an hour and a half", 90, "minutes"),
                    ("one and a half hours", 90, "minutes"), ("an hour", 1, "hours"), ("a minute", 1, "minutes"), ("half a minute", 30, "seconds")])
                return text
            short = {"seconds": "secs", "minutes": "mins", "hours": "hrs"}[unit]
            return f"{count} {(short if self.chance(0.1) else unit) if n > 1 else unit[:-1]}"
        if slot in ("delay", "delay1"):
            n = args["timer"] = r.choice([3, 5, 10, r.randint(2, 30)])
            return self.pick(str(n), words_of(n, r)) + (" second" if slot == "delay1" else " seconds")
        if slot == "photo":
            args["camera"] = self.pick("front", "back")
            noun = "(photo|picture|pic|snapshot|shot|image)"
            return self.choose(self.pick(*{
                "front": ["(a|another|one) selfie", f"a {noun} (of me|of myself|of us)", f"a {noun} with the (front|selfie) camera",
                          "a (group|) selfie", f"a (front|selfie) camera {noun}"],
                "back": [f"(a|another|one) {noun}", f"a {noun} with the (back|rear|main) camera", f"a {noun} (of this|of that|of the {self.word()})",
                         f"a (rear|back) camera {noun}"]}[args["camera"]]))
        if slot == "app":
            args["app"] = self.rng.choice(lexicon.APP[self.split])
            if self.split == "train" and self.chance(0.4):
                args["app"] = self.pick(capital(self.pseudo()), capital(self.word()) + " " + capital(self.word()), capital(self.pseudo()) + " " + capital(self.word()))
            return args["app"]
        if slot == "query":
            args["query"] = self.free(lexicon.QUERY, sentences.QUERY)
            return args["query"]
        if slot == "lang":
            args["language"] = r.choice(lexicon.LANGUAGE)
            return capital(args["language"]) if self.chance(0.6) else args["language"]
        if slot == "item":
            args["item"] = self.free(lexicon.ITEM, sentences.ITEM)
            return args["item"]
        if slot == "list":
            args["list"] = self.word() if self.split == "train" and self.chance(0.25) else r.choice(lexicon.LISTS[self.split])
            return args["list"]
        raise ValueError(slot)

    def vary(self, pattern):
        """Exchanges the verb or the wish of a training template that stays clear without it."""
        varied = pattern
        if self.chance(0.35) and (m := re.match(r"I (want|need|would like|have|must)( to)? ", pattern)):
            varied = self.rng.choice(WISHES_TO if m[2] else WISHES) + " " + pattern[m.end() :]
        elif self.chance(0.2) and NAMES_TOOL.search(pattern) and (m := re.match(r"[a-z]+ ", pattern)) and m[0].strip() in VERBS:
            verb = self.pseudo() if self.chance(0.2) else self.rng.choice(VERBS)
            varied = verb + pattern[m.end() - 1 :]
        return varied

    # Whole samples

    def sample(self, tool=None):
        """One (prompt, answer)."""
        while True:
            chosen = tool or self.rng.choices(self.tools, self.weights)[0]
            prompt, answer = self.attempt(chosen)
            if normal(prompt) != normal(README_PROMPT) and '"' not in "".join(
                    str(v) for v in json.loads(answer)["args"].values()):
                return prompt, answer

    def attempt(self, tool):
        r, args = self.rng, {}
        while True:
            template = r.choice(self.templates[tool])
            question = template.startswith("=")
            pattern = re.sub(" +", " ", self.choose(template.lstrip("="))).strip()
            if self.templates is TRAIN:
                pattern = self.vary(pattern)
            if self.templates is HELD or skeleton(pattern) not in HELD_SKELETONS:
                break
        self.wording = skeleton(pattern)
        starts = re.match(r'"?\{(\w+)\}', pattern)
        starts = bool(starts) and starts[1] in VERBATIM
        ends = re.search(r"\{(\w+)\}$", pattern)
        ends = bool(ends) and ends[1] in VERBATIM
        text = re.sub(r"\{(\w+)\}", lambda m: self.slot(m[1], args), pattern)
        text = re.sub(" +", " ", text).replace(" ,", ",").strip()
        text = re.sub(r"\b([Aa]) (?=(alarm|image|album)\b)", r"\1n ", text)
        if text.count(" :"):
            text = text.replace(" :", r.choice([":", " :"]))

        if tool == "send_message":
            args["to"] = args.pop("name")
        if tool == "get_weather":
            args.setdefault("day", "today")
        if tool == "take_photo":
            args.setdefault("camera", "back")

        polite = r.random()
        if not question and not starts and polite < 0.3:
            prefix = r.choice(PREFIX["imperative"])
            text = prefix + " " + text
        elif polite < 0.42 and not starts:
            text = r.choice(PREFIX["any"]) + r.choice([", ", " ", ", "]) + text
        if self.chance(0.15):
            text += r.choice(SUFFIX_AFTER_VERBATIM if ends else SUFFIX)
        style = r.random()
        lower = style < (0.3 if self.split == "train" else 0.2)
        if style > 0.55 and not starts:
            text = capital(text)
        if lower:
            text = text.lower()
        end = r.random()
        if text[-1] not in "?.!":
            if question and re.match(r"(what|how|will|is|do|does|can|should|which|any|where|are)\b", text.lower().split(", ")[-1]):
                text += "?" if end < 0.6 else ""
            elif end < 0.2:
                text += "."
            elif end < 0.24:
                text += "!"
            elif end < 0.3 and re.match(r"(hey, |please )?(can|could|would|will) you", text.lower()):
                text += "?"
        ordered = {}
        for key in ARGUMENTS[tool]:
            if key in args:
                value = args.pop(key)
                ordered[key] = value.lower() if lower and key in TEXT_ARGUMENTS else value
        assert not args, (tool, template, args)
        return text, json.dumps({"tool": tool, "args": ordered}, separators=(",", ":"), ensure_ascii=False)


def normal(prompt):
    """Letters and digits of a prompt in lower case: what two prompts must differ in."""
    return " ".join(re.findall(r"\w+", prompt.lower()))


def held_out(seed, count):
    """`count` held-out samples, the same number of each tool, no prompt twice."""
    sampler, seen, out = Sampler(seed, "held"), set(), []
    while len(out) < count:
        prompt, answer = sampler.sample(sampler.tools[len(out) % len(sampler.tools)])
        if normal(prompt) not in seen:
            seen.add(normal(prompt))
            out.append((prompt, answer))
    return out


def check(held_path, count):
    """Proves that training knows nothing of the held-out file; fails with what it has found."""
    lexicon.check()
    with open(held_path, encoding="utf-8") as file:
        held = [(sample["prompt"], sample["answer"]) for sample in map(json.loads, file)]
    assert held == held_out(HELD_SEED, len(held)), f"{held_path} is not what seed {HELD_SEED} gives"
    prompts = {normal(prompt) for prompt, _ in held}
    assert len(prompts) == len(held) >= 1000
    answers = collections.Counter(json.loads(answer)["tool"] for _, answer in held)
    assert set(answers) == set(ARGUMENTS) and len(answers) >= 12, answers
    common = {line for tool in TRAIN for line in TRAIN[tool]} & {line for tool in HELD for line in HELD[tool]}
    assert not common, common
    assert normal(README_PROMPT) not in prompts
    sampler, wordings = Sampler(HELD_SEED, "train"), set()
    for _ in range(count):
        prompt, answer = sampler.sample()
        assert normal(prompt) not in prompts, prompt
        assert normal(prompt) != normal(README_PROMPT), prompt
        assert sampler.wording not in HELD_SKELETONS, sampler.wording
        wordings.add(sampler.wording)
        words = {word for value in json.loads(answer)["args"].values() if isinstance(value, str) for word in re.findall(r"\w+", value.lower())}
        assert not words & HELD_ONLY, (prompt, words & HELD_ONLY)
    print(f"{len(held)} held-out requests of {len(answers)} tools, {len(HELD_SKELETONS)} wordings; {count} training requests of"
          f" {len(wordings)} wordings: none in common, nor the README's request")


def main():
    here = pathlib.Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--split", choices=["train", "held"], help="write samples of this split")
    parser.add_argument("--count", type=int, default=40000, help="how many; with --check, training samples to look at")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--out", default="-")
    parser.add_argument("--check", action="store_true", help="prove that training and held-out requests have nothing in common")
    args = parser.parse_args()
    if args.check:
        return check(here / "heldout.jsonl", args.count)
    if not args.split or args.seed is None:
        parser.error("--split needs a seed")
    lexicon.check()
    if args.split == "held":
        samples = held_out(args.seed, args.count)
    else:
        sampler = Sampler(args.seed, "train")
        samples = [sampler.sample() for _ in range(args.count)]
    with sys.stdout if args.out == "-" else open(args.out, "w", encoding="utf-8") as file:
        for prompt, answer in samples:
            file.write(json.dumps({"prompt": prompt, "answer": answer}, ensure_ascii=False, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
