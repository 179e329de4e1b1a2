#!/usr/bin/env python3
"""Writes tests/golden/text/tokenizer_goldens.jsonl: seeded texts and their ids by `tokenizers`.

Usage: tools/make_tokenizer_goldens.py        (pip install tokenizers==0.23.3)
One JSON object a line: "text", "ids", and "decoded" where decode(ids) is not the text itself
(NFC). The first line names the tokenizer and how many rows follow; further tokenizers (every other
tokenizer.json below tests/golden/fixtures, once per content) follow with 300 of the texts each.
"""
import hashlib
import json
import pathlib
import random

import tokenizers

ROOT = pathlib.Path(__file__).resolve().parent.parent
OUT = ROOT / "tests/golden/text/tokenizer_goldens.jsonl"
SEED = 20261124
NUM_TEXTS = 2000
NUM_TEXTS_OF_OTHERS = 300

WORDS = ("the quick brown fox jumps over a lazy dog while it's raining and they're sure we'll go "
         "Internationalization antidisestablishmentarianism naïve café résumé Straße Größe œuvre "
         "HTTPServer getElementById snake_case_name kebab-case SCREAMING_CASE x1 v2.0 U.S.A. "
         "I'M YOU'RE He'd don't won't 'tis o'clock rock'n'roll l'été ’s ‘quoted’ “double” it'S I'LL "
         "user@example.org https://example.com/a/b?c=d&e=%20#f /usr/local/bin C:\\temp ...").split()
CODE = [
    "def f(x: int) -> int:\n    return x**2 + 1\n", "for (int i = 0; i < n; ++i) { sum += a[i]; }\n",
    "\tif err != nil {\n\t\treturn nil, fmt.Errorf(\"open %q: %w\", path, err)\n\t}\n",
    "SELECT * FROM t WHERE a >= 10 AND b LIKE '%x%';\r\n", "#include <vector>\n\n\n",
    "{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Łódź\", \"n\": [1, 2.5e-3, null]}}",
    "<div class=\"a\">&nbsp;</div>\n<!-- c -->", "let s = `${a}_${b}`; // =>\n", "a=b==c!=d<=e>=f&&g||!h;",
    "fn main() -> Result<(), Box<dyn Error>> {\n    Ok(())\n}\n", "x\n\n\n\ny", "    \n        z\n",
    "lambda *a, **k: (a, k)", "0x1F_ff 1e10 1_000_000 3.14159 0b1010", "- [ ] todo\n- [x] done\n",
    "| a | b |\n|---|---|\n", "\\frac{a}{b} \\alpha^{2}_{i,j} $$x$$", "git log --oneline -n 5 | head",
]
CJK = "深度学习模型的词表很小日本語テキストもトークン化されるべきですガギグゲゴ한국어도마찬가지입니다々〆ヶー「」、。！？１２３ＡＢＣ㈱㍿"
ARABIC = "مرحبا بالعالم هذا اختبار ١٢٣ السَّلَامُ عَلَيْكُمْ ، ؟ ـــ לָשׁוֹן שלום فارسی ۴۵۶ پچژگ"
INDIC = "नमस्ते दुनिया यह परीक्षा है क्षत्रिय हिन्दी १२३ ক্ষ বাংলা தமிழ் తెలుగు ಕನ್ನಡ മലയാളം ไทย ภาษา ລາວ བོད་ སිංහල မြန်မာ"
OTHER = "Ελληνικά Привет мир Ёжик ЩЪЫЬ Հայերեն ქართული አማርኛ ᏣᎳᎩ ᚠᚢᚦ ΑΣ ǅ ŉ ß ſ ĳ K Å Ω ﬁ ½ Ⅷ ² ① 𝔘𝔫𝔦 𐍈 𠀀𠮷"
EMOJI = [
    "\U0001f44d", "\U0001f44d\U0001f3fd", "\U0001f469\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466",
    "\U0001f3f3\ufe0f\u200d\U0001f308", "\U0001f1e9\U0001f1ea\U0001f1eb\U0001f1f7", "1\ufe0f\u20e3",
    "\u2764\ufe0f\u200d\U0001f525", "\U0001f468\U0001f3ff\u200d\U0001f680", "\U0001f642", "\u2603",
    "\u2603\ufe0f", "\u2708\ufe0e", "\U0001f937\U0001f3fb\u200d\u2640\ufe0f", "\U0001fae0", "\u200d",
    "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f", "#\ufe0f\u20e3", "\ufe0f"]
SPACES = [" ", "  ", "   ", "\t", "\n", "\r\n", "\r", "\n\n", " \n", "\n ", "\v", "\f", "\x85",
          "\u00a0", "\u1680", "\u2003", "\u2028", "\u2029", "\u202f", "\u205f", "\u3000", "\u180e",
          "\u200b", "\ufeff", " " * 17, "\t\t\t", "\n" * 9, " \t \n \t "]
BASES = "aeiouAEIOUncszyNCSZ ωαιηςΑΗкиІअनकগ가カはஒ=<>→∃≠'1.\n"
MARKS = "".join(map(chr, [*range(0x300, 0x315), 0x31B, 0x323, 0x325, 0x327, 0x328, 0x32D, 0x331, 0x338,
                          0x340, 0x341, 0x342, 0x343, 0x344, 0x345, 0x3099, 0x309A, 0x93C, 0x9BE,
                          0x5BC, 0x5C1, 0x64B, 0x651, 0x653, 0x20DD, 0x1D165]))
# Singletons, composition exclusions, Hangul: what NFC changes or must leave alone.
NFC_CASES = [
    "\u212b", "\u2126", "\u212a", "\uf900", "\U0002f800", "\u0958", "\ufb2c", "\u1112\u1161\u11ab",
    "\uac00\u11a8", "\u1e0b\u0323", "d\u0307\u0323", "q\u0307\u0323", "o\u0308\u0332", "a\u05ae\u0300\u0315b",
    "a\u0315\u0300\u05ae\u0300b", "\U0001d15e", "\u1fb2", "\u1f71", "\u309a", "\u09c7\u09be",
    "\u0bc6\u0bbe", "\u0f73", "\u1fef", "\u037e", "\u4e3d", "\u0344", "\U00011131\U00011127", "\ufb00",
    "\u2460", "\uac00\u11a7", "\u1100\uac00", "e\u0301\u0301", "\u0041\u030a\u0301", "\u2adc", "\u0340"]
CONTROLS = [chr(c) for c in (*range(0x00, 0x20), 0x7F, 0x80, 0x9F, 0xAD, 0x200D, 0x200E, 0x202E, 0x2066,
                             0xFFFD, 0xFFFE, 0xFFFF, 0xE000, 0x10FFFF, 0xE0001, 0x378)]
CONTRACTIONS = ["'s", "'S", "'t", "'T", "'re", "'RE", "'rE", "'ve", "'Ve", "'m", "'M", "'ll", "'lL", "'d",
                "'D", "'ſ", "'r", "'l", "'v", "''s", "'", "’s", "'sss", "'tis", "'Llama", "'é"]
PUNCTUATION = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~…–—«»„“”‘’¿¡§¶•€£¥©®™°±×÷∑∞≤≥→"
DIGITS = ["7", "42", "2026", "1234567890", "3.14", "1,000,000", "-17", "0007", "١٢٣٤", "१२", "１２", "²³",
          "½", "Ⅻ", "①②", "𝟘𝟙", "12ab34", "1 2  3"]


def added_tokens(tokenizer):
    return [token.content for _, token in sorted(tokenizer.get_added_tokens_decoder().items())]


def pieces(rng, kind, added):
    """A list of strings of one kind."""
    def some(low, high, make):
        return [make() for _ in range(rng.randint(low, high))]

    def slice_of(text):
        start = rng.randrange(len(text))
        return text[start:start + rng.randint(1, 14)]

    if kind == "prose":
        return some(4, 26, lambda: rng.choice(WORDS) + rng.choice([" "] * 8 + [", ", ". ", "\n", "  ", ""]))
    if kind == "code":
        return some(1, 4, lambda: rng.choice(CODE))
    if kind == "identifiers":
        return some(2, 10, lambda: rng.choice(WORDS) + rng.choice(["_", "", ".", "::", "->", "2", "-"])
                    + rng.choice(WORDS).capitalize() + rng.choice([" ", "();\n", ", "]))
    if kind in ("cjk", "arabic", "indic", "other"):
        source = {"cjk": CJK, "arabic": ARABIC, "indic": INDIC, "other": OTHER}[kind]
        return some(2, 6, lambda: slice_of(source) + rng.choice(["", "", " ", "\n", ", "]))
    if kind == "marks":
        return some(2, 12, lambda: rng.choice(BASES) + "".join(some(0, 4, lambda: rng.choice(MARKS))))
    if kind == "nfc":
        return some(1, 6, lambda: rng.choice(NFC_CASES) + rng.choice(["", "x", " "])
                    + rng.choice(["", "", rng.choice(MARKS)]))
    if kind == "emoji":
        return some(1, 6, lambda: rng.choice(EMOJI) + rng.choice(["", " ", "a", "!"]))
    if kind == "spaces":
        return some(2, 9, lambda: rng.choice(SPACES) + rng.choice(["", "", "", "a", "Wort", "7", "!", "é"]))
    if kind == "digits":
        return some(1, 8, lambda: rng.choice(DIGITS) + rng.choice(["", " ", "\n", "x", "-"]))
    if kind == "contractions":
        return some(2, 9, lambda: rng.choice(["", "I", "they", "x1", " ", "\n", "é", "."])
                    + rng.choice(CONTRACTIONS) + rng.choice(["", " ", "x", "\n", "1"]))
    if kind == "added":
        def near():
            token = rng.choice(added)
            change = rng.randrange(8)
            if change == 0:
                return token[:-1]
            if change == 1:
                return token.upper()
            if change == 2:
                return token[:3] + token  # a false start
            return token
        return some(1, 7, lambda: near() + rng.choice(["", "", "\n", " ", "user\n", "Hi's", "\u0338", "e\u0301"]))
    if kind == "controls":
        return some(1, 8, lambda: rng.choice(CONTROLS) + rng.choice(["", "a", " ", "\n", "9"]))
    if kind == "punctuation":
        return some(2, 9, lambda: "".join(some(1, 6, lambda: rng.choice(PUNCTUATION)))
                    + rng.choice(["", " ", "\n", "\r\n\n", "a", " b"]))
    assert kind == "random"
    def code_point():
        while True:
            # Below U+3000 half of the time; never a surrogate.
            c = rng.randrange(0x3000) if rng.random() < 0.5 else rng.randrange(0x20000)
            if not 0xD800 <= c < 0xE000:
                return chr(c)
    return some(1, 24, code_point)


KINDS = ["prose", "code", "identifiers", "cjk", "arabic", "indic", "other", "marks", "nfc", "emoji",
         "spaces", "digits", "contractions", "added", "controls", "punctuation", "random"]


def make_texts(added):
    rng = random.Random(SEED)
    texts = ["", " ", "\n", "\0", "a", "é", "e\u0301", "'s", *added, *NFC_CASES]
    seen = set(texts)
    while len(texts) < NUM_TEXTS:
        kind = KINDS[len(texts) % len(KINDS)]
        parts = pieces(rng, kind, added)
        if rng.random() < 0.4:  # mixed
            parts += pieces(rng, rng.choice(KINDS), added)[:6]
            rng.shuffle(parts)
        text = "".join(parts)[:220]
        if text not in seen:
            seen.add(text)
            texts.append(text)
    return texts


def line(row):
    return json.dumps(row, ensure_ascii=False, separators=(",", ":"))


def rows_of(path, texts):
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    yield line({"tokenizer": str(path.relative_to(ROOT)), "num_rows": len(texts)})
    for text in texts:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        row = {"text": text, "ids": ids}
        decoded = tokenizer.decode(ids, skip_special_tokens=False)
        if decoded != text:
            row["decoded"] = decoded
        yield line(row)


def main():
    assert tokenizers.__version__ == "0.23.3", tokenizers.__version__
    demo = ROOT / "models/nibble-demo-14m/tokenizer.json"
    texts = make_texts(added_tokens(tokenizers.Tokenizer.from_file(str(demo))))
    lines = list(rows_of(demo, texts))
    known = {hashlib.sha256(demo.read_bytes()).digest()}
    for path in sorted((ROOT / "tests/golden/fixtures").rglob("tokenizer.json")):
        digest = hashlib.sha256(path.read_bytes()).digest()
        if digest not in known:
            known.add(digest)
            lines += rows_of(path, random.Random(SEED).sample(texts, NUM_TEXTS_OF_OTHERS))
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
    print(f"{OUT.relative_to(ROOT)}: {len(lines)} lines, {OUT.stat().st_size} bytes")


if __name__ == "__main__":
    main()
