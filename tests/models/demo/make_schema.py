"""Writes tools.schema.json: the JSON schema of every tool call that the demo model may answer with.

Tools and arguments, and their order, are those of `templates.ARGUMENTS`; what is not a plain string is said here.

    python3 make_schema.py        # writes tools.schema.json beside this file
"""

import json
import os

import templates

DAYS = "today tomorrow monday tuesday wednesday thursday friday saturday sunday daily weekdays weekends".split()
SETTINGS = ("airplane_mode auto_rotate battery_saver bluetooth dark_mode do_not_disturb flashlight hotspot location "
            "mobile_data nfc wifi").split()

# Arguments whose values are few or no strings, by name, or by tool and name.
VALUES = {
    "time": {"type": "string", "minLength": 5, "maxLength": 5},
    "day": {"enum": DAYS},
    "amount": {"type": "integer", "minimum": 0},
    "unit": {"enum": ["seconds", "minutes", "hours"]},
    "speaker": {"const": True},
    "level": {"type": "integer", "minimum": 0, "maximum": 100},
    "setting": {"enum": SETTINGS},
    "state": {"enum": ["on", "off"]},
    "mode": {"enum": ["walking", "driving", "cycling", "transit"]},
    "camera": {"enum": ["front", "back"]},
    "timer": {"type": "integer", "minimum": 0},
}
# Arguments that are only there if the request says them.
OPTIONAL = {
    ("set_alarm", "day"), ("call_contact", "speaker"), ("add_reminder", "day"), ("add_reminder", "time"),
    ("navigate_to", "mode"), ("get_weather", "place"), ("take_photo", "timer"),
}
# Tools whose arguments go together in several ways: each a list of names, with "?" for optional ones.
VARIANTS = {"play_music": [["title", "artist?"], ["artist"], ["playlist"]]}


def arguments(names):
    plain = [name.rstrip("?") for name in names]
    return {
        "type": "object",
        "properties": {name: VALUES.get(name, {"type": "string", "minLength": 1}) for name in plain},
        "required": [name for name in names if not name.endswith("?")],
        "additionalProperties": False,
    }


def tool(name, names):
    marked = [argument + "?" if (name, argument) in OPTIONAL else argument for argument in names]
    variants = [arguments(variant) for variant in VARIANTS.get(name, [marked])]
    return {
        "type": "object",
        "properties": {"tool": {"const": name}, "args": variants[0] if len(variants) == 1 else {"anyOf": variants}},
        "required": ["tool", "args"],
        "additionalProperties": False,
    }


def main():
    schema = {"title": "a tool call of the demo model", "oneOf": [tool(*entry) for entry in templates.ARGUMENTS.items()]}
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "tools.schema.json")
    with open(path, "w", encoding="utf-8") as file:
        file.write(json.dumps(schema, separators=(",", ":")).replace('{"type":"object","properties":{"tool"', '\n{"type":"object","properties":{"tool"') + "\n")


if __name__ == "__main__":
    main()
