#!/usr/bin/env python3
"""Writes tests/golden/text/template_goldens.jsonl: generated conversations rendered by Jinja2.

Usage: tools/make_template_goldens.py        (pip install -r tools/requirements.txt)
One JSON object a line: "variables" and either "text" or "error" (the message of raise_exception)
for the bundled chat template; then rows with "template" of their own, one language feature each.
The environment is the one Hugging Face transformers sets up for chat templates.
"""
import json
import pathlib
import random

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

ROOT = pathlib.Path(__file__).resolve().parent.parent
OUT = ROOT / "tests/golden/text/template_goldens.jsonl"
TEMPLATE = ROOT / "models/nibble-demo-14m/chat_template.jinja"
SEED = 20261124
NUM_CONVERSATIONS = 260

TEXTS = ["Hello", "", "  padded \n", "What's the weather in Łódź?", "深度学习", "👩‍👩‍👧 family", "a\nb\n\nc",
         "<tool_response>\nfake\n</tool_response>", "<think>\nplan\n</think>\n\nanswer", "{{ not jinja }}",
         "{% raw %}", "tab\there", "quote \" and ' and \\", "<|im_end|>", "é vs e\u0301", "x" * 300,
         "</think>", "1e-07", "&lt;html&gt; <b>", "\u2028line"]
NAMES = ["weather", "db.query", "поиск", "a_b-c", "get_" + "x" * 40]
VALUES = ["text", "", 0, -3, 2.5, 1e-7, 1e22, True, False, None, [1, [2, {"k": "v"}]], {"a": {"b": []}}, "Ω\n\"q\"",
          {}, [], 12345678901234567890 % 2**62, "</parameter>"]


def make_tool(rng):
    properties = {rng.choice(["city", "n", "flag", "größe", "opts"]): {
        "type": rng.choice(["string", "integer", "boolean", "object", ["integer", "null"]]),
        "description": rng.choice(TEXTS)} for _ in range(rng.randrange(4))}
    return {"type": "function", "function": {
        "name": rng.choice(NAMES), "description": rng.choice(TEXTS),
        "parameters": {"type": "object", "properties": properties, "required": list(properties)[:1]}}}


def make_content(rng, role):
    kind = rng.random()
    if kind < 0.7:
        return rng.choice(TEXTS)
    if kind < 0.75:
        return None
    parts = [{"type": "text", "text": rng.choice(TEXTS)} for _ in range(rng.randrange(1, 3))]
    if role == "user" and rng.random() < 0.5:
        parts.insert(rng.randrange(len(parts) + 1), rng.choice([
            {"type": "image"}, {"type": "image_url", "image_url": {"url": "http://x/y.png"}},
            {"type": "video", "video": "z.mp4"}, {"type": "smell"}]))
    return parts


def make_message(rng, role):
    message = {"role": role, "content": make_content(rng, role)}
    if role == "assistant":
        if rng.random() < 0.4:
            message["reasoning_content"] = rng.choice(TEXTS)
        if rng.random() < 0.4:
            call = {"name": rng.choice(NAMES), "arguments": {
                f"p{i}": rng.choice(VALUES) for i in range(rng.randrange(4))}}
            if rng.random() < 0.1:
                call["arguments"] = rng.choice(["", " ", "{\"a\": 1}"])
            message["tool_calls"] = [call if rng.random() < 0.3 else
                                     {"id": "c1", "type": "function", "function": call}
                                     for _ in range(rng.randrange(1, 4))]
    return message


def make_variables(rng):
    messages = []
    if rng.random() < 0.5:
        messages.append(make_message(rng, "system"))
    for _ in range(rng.randrange(1, 5)):
        messages.append(make_message(rng, "user"))
        for _ in range(rng.randrange(3)):
            messages.append(make_message(rng, "assistant"))
            for _ in range(rng.randrange(3)):
                messages.append(make_message(rng, "tool"))
    if rng.random() < 0.05:
        messages.append(make_message(rng, rng.choice(["system", "judge"])))
    if rng.random() < 0.02:
        messages = []
    variables = {"messages": messages, "add_generation_prompt": rng.random() < 0.7}
    if rng.random() < 0.5:
        variables["tools"] = [make_tool(rng) for _ in range(rng.randrange(4))]
    if rng.random() < 0.6:
        variables["enable_thinking"] = rng.random() < 0.5
    return variables


SNIPPETS = [
    "{{ 7 // 2 }} {{ -7 // 2 }} {{ 7 % -3 }} {{ 2 ** 10 }} {{ 7 / 2 }} {{ 6 / 2 }}",
    "{{ 1 < 2 < 3 }} {{ 1 < 3 < 2 }} {{ not none }} {{ 'a' in 'cab' }} {{ 1 in [1] }} {{ 'k' in {'k': 1} }}",
    "{{ x[1:] }} {{ x[::-1] }} {{ x[-2:] }} {{ 'hello'[1:3] }} {{ x[5:] }}",
    "{{ x | join('-') }} {{ x | length }} {{ x | first }} {{ x | last }} {{ x | reverse | list }}",
    "{{ d.items() | list }} {{ d.keys() | list }} {{ d.get('z', 'no') }} {{ d['a'] }} {{ d.a }}",
    "{{ d | tojson }} {{ d | tojson(indent=2) }} {{ '<é>' | tojson }}",
    "{% for i in range(5) %}{% if i == 1 %}{% continue %}{% endif %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}",
    "{% for k, v in d.items() %}{{ loop.index }}/{{ loop.length }}:{{ k }}={{ v }}{{ ', ' if not loop.last }}{% endfor %}",
    "{% for i in [] %}x{% else %}empty{% endfor %}",
    "{% for i in x if i > 1 %}{{ i }};{% endfor %}",
    "{% set ns = namespace(n=0) %}{% for i in x %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}",
    "{% set a = 1 %}{% for i in x %}{% set a = i %}{% endfor %}{{ a }}",
    "{% set block %}in {{ x[0] }}{% endset %}[{{ block }}]",
    "{% macro m(a, b='B') %}{{ a }}{{ b }}{% endmacro %}{{ m(1) }} {{ m(1, 2) }} {{ m(b=3, a=4) }}",
    "{{ 'Title case' | upper }} {{ 'ABC' | lower }} {{ 'abc def' | title }} {{ 'abc' | capitalize }}",
    "{{ '  x ' | trim }}| {{ 'a,b,c'.split(',') }} {{ 'aXbX'.replace('X', '-') }} {{ 'abc'.startswith('ab') }}",
    "{{ x is iterable }} {{ x is mapping }} {{ d is mapping }} {{ 'a' is string }} {{ 1 is number }} {{ u is undefined }} {{ none is none }} {{ true is boolean }}",
    "{{ u | default('dflt') }} {{ '' | default('e', true) }} {{ u is defined }}",
    "{{ x | map('string') | join('+') }} {{ x | select('odd') | list }} {{ x | reject('odd') | list }} {{ x | sum }} {{ x | max }} {{ x | min }}",
    "{{ people | map(attribute='name') | join(',') }} {{ people | selectattr('age', 'gt', 3) | map(attribute='name') | list }}",
    "{{ people | sort(attribute='age') | map(attribute='name') | list }} {{ [3, 1, 2] | sort(reverse=true) }} {{ ['b', 'A'] | sort }}",
    "{{ [1, 'a', none, true, 1.0, {'k': [1]}] }} {{ 'it\\'s' }} {{ [\"it's\"] }}",
    "{{ 1e10 }} {{ 1e-7 }} {{ 123456789012345678 }} {{ 0.1 + 0.2 }} {{ 3.0 }} {{ 10 | float }} {{ '12' | int }} {{ 'x' | int(7) }} {{ 2.5 | round }} {{ 2.567 | round(1) }}",
    "a  \n  {% if true %}\n  b\n  {% endif %}\n c",
    "a {%- if true -%} b {%- endif -%} c",
    "  {# comment #}\nx {#- tight -#} y",
    "{% raw %}{{ x }}{% endraw %}",
    "{{ 'a' ~ 1 ~ none }} {{ 'ab' * 3 }} {{ [1] + [2] }}",
    "{{ x[0] if x else 'none' }} {{ 'y' if false }}|",
    "{% if x %}A{% elif d %}B{% else %}C{% endif %}{% if not x and d or u %}D{% endif %}",
    "{{ 'hello world' | replace('o', '0') }} {{ 'abc' | list }} {{ x | unique | list }}",
    "{{ {'b': 1, 'a': 2} | dictsort }} {{ dict(a=1) }} {{ d | items | list }}",
    "{{ '\\n\\t' | tojson }} {{ 'caf\\u00e9' }} {{ 'x' | e }} {{ '<' | escape }}",
    "{% filter upper %}abc{% endfilter %}",
    "{{ loop is defined }}",
    "{{ 'a b c'.split() | last }} {{ ' x'.lstrip() }} {{ 'x\\n'.rstrip('\\n') }} {{ 'xyx'.strip('x') }} {{ 'abc'.find('c') }}",
    "{{ (1, 2) }} {{ (1,) }} {{ () }} {{ [1, 2][0] }} {{ 'x'.join(['a', 'b']) }}",
    "{{ x | batch(2) | list }} {{ 'a\nb' | indent(2) }}",
    "{% set a, b = [1, 2] %}{{ a }}{{ b }} {{ 5 is divisibleby(5) }} {{ 4 is even }} {{ 'a' is in ['a'] }} {{ 3 is eq(3) }}",
    "{{ raise_exception('own words: ' ~ x[0]) }}",
]


def main():
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])

    class Raised(Exception):
        pass

    def raise_exception(message):
        raise Raised(message)

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
                          sort_keys=sort_keys)

    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    rows = []

    def add(text, variables, **extra):
        row = dict(extra, variables=variables)
        try:
            row["text"] = environment.from_string(text).render(**variables)
        except Raised as raised:
            row["error"] = str(raised)
        rows.append(row)

    rng = random.Random(SEED)
    bundled = TEMPLATE.read_text(encoding="utf-8")
    for _ in range(NUM_CONVERSATIONS):
        add(bundled, make_variables(rng))
    variables = {"x": [1, 2, 3], "d": {"a": 1, "b": [True, None, "ü"]},
                 "people": [{"name": "Ann", "age": 7}, {"name": "Bob", "age": 3}, {"name": "Cem", "age": 5}]}
    for snippet in SNIPPETS:
        add(snippet, variables, template=snippet)
    with OUT.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    errors = sum("error" in row for row in rows)
    print(f"{OUT.relative_to(ROOT)}: {len(rows)} rows, {errors} of them errors")


if __name__ == "__main__":
    main()
