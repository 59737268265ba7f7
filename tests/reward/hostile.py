"""Texts that no verifier should be given and every verifier will be: none of them equals 7, unless it says so.

Each has the outcomes that are allowed for it: `NEVER` right is the rule; `WRONG` where there plainly is no such answer;
`FAILED` where nobody can compute it; `RIGHT` where the answer 7 stands at the end of hostile surroundings.

`SLOW` ones take a second of computing or never end; `make test` has only those of `KILLED`, `make soak` has all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

REFERENCE = "7"
MEGABYTE = 10**6

RIGHT, WRONG, FAILED = frozenset({"right"}), frozenset({"wrong"}), frozenset({"failed"})
NEVER = WRONG | FAILED


KILLED = frozenset({"gamma", "huge product", "expansion", "improper integral"})
SLOW = KILLED | frozenset({
    "choose itself", "sum of factorials", "infinite product", "hard integral", "triple integral", "high degree",
    "many roots",
    "trigonometry", "logarithms", "determinant", "union", "infinite sum", "divergent sum", "tower of x, 3 high",
    "nested binomials", "code: lambda", "double sum", "limit", "factorial of x", "relations"})


@dataclass(frozen=True)
class Hostile:
    name: str
    text: str
    allowed: frozenset[str] = NEVER

    @property
    def slow(self) -> bool:
        return self.name in SLOW


def corpus() -> list[Hostile]:
    """All of them; names and texts are distinct."""
    return [*towers(), *factorials(), *nesting(), *megabytes(), *computations(), *characters(), *code(), *patterns(),
            *clipped(), *ending_right()]


def box(inside: str) -> str:
    return f"\\boxed{{{inside}}}"


def towers() -> Iterator[Hostile]:
    for base in ("9", "10", "99", "x", "(-2)"):
        for height in (3, 5, 9):
            tower = base
            for _ in range(height):
                tower = f"{base}^{{{tower}}}"
            yield Hostile(f"tower of {base}, {height} high", box(tower), FAILED if base.isdigit() else NEVER)
    for height in (3, 5, 50):
        yield Hostile(f"python tower {height}", "**".join("9" * height), FAILED)
        yield Hostile(f"bare carets {height}", box("^".join("9" * height)), FAILED)
    for name, text in (
            ("tower below a line", r"\frac{1}{9^{9^{9^9}}}"), ("tower less itself", r"9^{9^{9^9}}-9^{9^{9^9}}"),
            ("tower of e", r"e^{e^{e^{e^{9^{99}}}}}"), ("tower in a root", r"\sqrt[9]{9^{9^{9^9}}}"),
            ("tower in a logarithm", r"\log(\log(10^{10^{10^{10}}}))"), ("tower modulo", r"7^{7^{7^{7}}} \bmod 10"),
            ("tower of brackets", r"((((9^9)^{9^9})^{9^9})^{9^9})"), ("huge exponent", r"2^{99999999999}"),
            ("huge negative exponent", r"10^{-10^{10}}"), ("tower in a subscript", r"a_{9^{9^{9^9}}}"),
            ("tower in text", r"\text{9^{9^{9^9}}}"), ("tower in a tuple", r"(7, 9^{9^{9^9}})"),
            ("tower in a set", r"\{7, 9^{9^{9^9}}\}"),
            ("tower in a matrix", r"\begin{pmatrix}9^{9^{9^9}}\end{pmatrix}"),
            ("tower in an equation", r"x = 9^{9^{9^9}}"), ("tower times 0 plus 8", r"0 \cdot 9^{9^{9^9}} + 8"),
            ("decimal tower", "1.5^{1.5^{99^{99}}}"), ("tower as scientific", "9e999^{999^{99}}")):
        yield Hostile(name, box(text))


def factorials() -> Iterator[Hostile]:
    for depth in (2, 3, 6, 30):
        yield Hostile(f"nested factorials {depth}", box("(" * (depth - 1) + "100!" + ")!" * (depth - 1)), FAILED)
    for number in (10**6, 10**9, 10**30):
        yield Hostile(f"{number}!", box(f"{number}!"), FAILED)
    for name, text in (
            ("a thousand exclamation marks", "9" + "!" * 1000), ("factorial of a power", r"(10^{10})!"),
            ("power of factorials", r"(50!)^{50!}"), ("ratio of factorials", r"\frac{1000000!}{999999!}"),
            ("huge binomial", r"\binom{10^{9}}{5 \cdot 10^{8}}"),
            ("huge binomial, digits", r"\binom{1000000000}{500000}"),
            ("nested binomials", r"\binom{\binom{\binom{99}{49}}{49}}{49}"), ("gamma", r"\Gamma(10^{9})"),
            ("negative factorial", "(-9)!"), ("factorial of x", "(((x!)!)!)!"),
            ("factorial of a fraction", r"(\frac{1}{9})!"),
            ("sum of factorials", "+".join(f"{n}!" for n in range(2000, 2300))),
            ("choose itself", r"{10^9 \choose 10^8}")):
        yield Hostile(name, box(text))


def nesting() -> Iterator[Hostile]:
    pairs = {"parentheses": ("(", ")"), "brackets": ("[", "]"), "braces": ("{", "}"), "sets": (r"\{", r"\}"),
             "left-right": (r"\left(", r"\right)"), "fractions": (r"\frac{1}{", "}"), "roots": (r"\sqrt{", "}"),
             "text": (r"\text{", "}"), "functions": (r"\sin(", ")"), "absolute values": ("|", "|"), "minus": ("-(",
             ")"),
             "exponents": ("x^{", "}"), "subscripts": ("x_{", "}")}
    for name, (left, right) in pairs.items():
        for depth in (45, 250):
            yield Hostile(f"{name} nested {depth}", box(left * depth + "8" + right * depth))
    for name, text in (
            ("unbalanced left", box("{" * 30 + "8" + "}" * 30) + "(" * 900),
            ("only left", "\\boxed{" + "(" * 3000 + "}"),
            ("only right", box(")" * 3000)), ("crossed", box("([{" * 300 + ")]}" * 0 + "8" + "}])" * 300)),
            ("alternating", box("(8)(" * 700)), ("boxes in boxes", "\\boxed{" * 400 + "8" + "}" * 400),
            ("nested matrices", box(r"\begin{pmatrix}" * 60 + "8" + r"\end{pmatrix}" * 60)),
            ("continued fraction", box(r"1+\cfrac{1}{" * 200 + "2" + "}" * 200)),
            ("bars", box("|" * 999 + "8" + "|" * 999)),
            ("just under the limit", box("(" * 10 + "8" + ")" * 10)), ("dollars", "$" * 999 + "8" + "$" * 999),
            ("sum of nested", box("+".join(["((((8))))"] * 300)))):
        yield Hostile(name, text)


def megabytes() -> Iterator[Hostile]:
    for unit in ("(", ")", "[", "{", "}", "\\{", "$", "\\", "\\(", "\\[", " ", "\n", ",", "=", "-", "^", "_", "|", "&",
                 "8", "8,", "8 ", ".8", "1+", "1/", "\\frac", "\\frac{1}{2}", "\\boxed{", "\\boxed{}", "\\boxed{8",
                 "</think>", "<think>", "answer", "answer:", "the answer is ", "Answer: (", "#### ", "<answer>", "and ",
                 "\x00", "\u202e", "\u0301", "七", "🙂", "\\sqrt", "\\left(", "x^", "%", "!", "e"):
        yield Hostile(f"very many {unit!r}", unit * (50_000 // len(unit)))
        yield Hostile(f"very many {unit!r} in a box", box(unit * (50_000 // len(unit))))
    for unit in ("(", "{", "\\", "\x00", "8", "\\boxed{", "The answer is 8, no wait.\n", r"\boxed{8} and ", "七"):
        yield Hostile(f"a megabyte of {unit!r}", unit * (MEGABYTE // len(unit)))


def computations() -> Iterator[Hostile]:
    for name, text in (
            ("long sum", r"\sum_{n=1}^{10^{12}} \frac{1}{n^3}"),
            ("infinite sum", r"\sum_{n=1}^{\infty} \frac{1}{n^{3}}"),
            ("divergent sum", r"\sum_{n=1}^{\infty} n"),
            ("double sum", r"\sum_{n=1}^{999}\sum_{m=1}^{999} \frac{1}{n m}"),
            ("huge product", r"\prod_{n=1}^{100000} (x+n)"), ("infinite product", r"\prod_{n=1}^{\infty} n"),
            ("hard integral", r"\int_0^1 x^{x^x} \sin(\cos(\tan x)) \, dx"),
            ("improper integral", r"\int_0^\infty \frac{\sin x}{x^x}dx"),
            ("triple integral", r"\int\int\int e^{x y z} \, dx \, dy \, dz"),
            ("limit", r"\lim_{x \to 0} \frac{\sin x^{x}}{x}"),
            ("expansion", "(x+y+z+w)^{400}"), ("high degree", "(x+1)^{999999}"), ("high root", r"\sqrt[999999]{x+1}"),
            ("many roots", "+".join(rf"\sqrt{{{n}}}" for n in range(2, 60))),
            ("denesting", r"\sqrt{2+\sqrt{3+\sqrt{5+\sqrt{7+\sqrt{11+\sqrt{13+\sqrt{17}}}}}}}"),
            ("trigonometry", r"\sin(\cos(\tan(\sin(\cos(\tan(\sin(\cos(x))))))))"), ("huge angle", r"\sin(10^{300})"),
            ("logarithms", r"\log(\log(\log(\log(\log(\log(2))))))"), ("division by zero", r"\frac{7}{0}"),
            ("zero by zero", r"\frac{0}{0}"), ("zero to the zero", "0^0 + 7"),
            ("infinity less itself", r"\infty-\infty"),
            ("complex infinity", r"\frac{1}{0} - \frac{1}{0}"), ("quintic", "x^5-x-1=0"),
            ("system", "x^5+y^5=1, x^7-y^3=2"),
            ("matrix power", r"\begin{pmatrix}1&2\\3&4\end{pmatrix}^{99999}"),
            ("determinant", r"\det\begin{pmatrix}" + r"\\".join(["&".join(["a_{9}", "x", "y"] * 3)] * 9)
             + r"\end{pmatrix}"), ("large set", r"\{" + ",".join(map(str, range(800))) + r"\}"),
            ("union", r"\cup".join(f"({n},{n + 1})" for n in range(0, 200, 2))), ("gcd", r"\gcd(10^{40}+1, 10^{39}+3)"),
            ("semiprime", "1000000000000000003 * 1000000000000000009"), ("chain of equations", "=".join(["x+1"] * 300)),
            ("long fraction", r"\frac{" + "1" * 1500 + "}{" + "3" * 1500 + "}"), ("digits", "9" * 4000),
            ("decimals", "0." + "3" * 4000), ("many variables", "+".join(f"x_{{{n}}}^{{{n}}}" for n in range(200))),
            ("implicit product", "abcdefghijklmnopqrstuvwxyz" * 40), ("relations", "<".join(map(str, range(400)))),
            ("floor of a tower", r"\lfloor 9^{9^{9^9}} \rfloor"), ("modulo", r"3^{10000000} \bmod 8")):
        yield Hostile(name, box(text))


def characters() -> Iterator[Hostile]:
    for name, inside in (
            ("NUL", "\x00"), ("NULs around 8", "\x00\x008\x00"), ("escape", "\x1b[2J8"), ("bell", "\x07" * 50),
            ("delete", "8\x7f"),
            ("replacement", "\ufffd"), ("byte order mark", "\ufeff8"), ("right to left", "\u202e8\u202c"),
            ("zero width", "8\u200b\u200d"), ("combining", "8" + "\u0301" * 300), ("emoji", "👩‍👩‍👧‍👦" * 20),
            ("flag", "🇫🇷"),
            ("full width", "８"), ("arabic", "٨"), ("devanagari", "८"), ("bold", "𝟖"), ("circled", "⑧"), ("roman", "Ⅷ"),
            ("chinese", "八"), ("superscript", "8⁸⁸"), ("subscript", "x₈"), ("fraction sign", "⅞"),
            ("greek", "αβγ = ω"),
            ("cyrillic", "ответ восемь"), ("hebrew", "שמונה"), ("thai", "แปด"), ("unpaired surrogate", "\ud800"),
            ("private use", "\ue000" * 99), ("noncharacter", "\uffff"), ("vertical tab", "8\x0b\x0c\x1c"),
            ("line separator", "8\u2028\u2029"), ("long word", "ß" * 2000), ("percent signs", "%s%n%d" * 100),
            ("tabs", "\t" * 2000)):
        yield Hostile(f"characters: {name}", box(inside))
    yield Hostile("characters: box in cyrillic letters", "\\bоxed{7")
    yield Hostile("characters: think tag of other letters", "<∕think> it is eight")


def code() -> Iterator[Hostile]:
    for name, text in (
            ("abort", "__import__('os').abort()"), ("exit", "exit()"),
            ("system", "__import__('os').system('kill -9 $PPID')"),
            ("open", "open('/etc/passwd').read()"), ("lambda", "(lambda f: f(f))(lambda f: f(f))"),
            ("while", "while True: pass"),
            ("factorint", "factorint(10**80+1)"), ("input", r"\input{/etc/passwd}"),
            ("write18", r"\immediate\write18{reboot}"),
            ("macro", r"\def\x{\x\x}\x"), ("newcommand", r"\newcommand{\a}{\a\a}\a"), ("loop", r"\loop\iftrue\repeat"),
            ("json", '{"answer": 8}'), ("html", "<script>alert(8)</script>"), ("sql", "8'; DROP TABLE answers; --"),
            ("format", "{0.__class__.__mro__}"), ("shell", "$(reboot) `reboot`"),
            ("pickle", "cos\nsystem\n(S'reboot'\ntR."),
            ("regex", "(a+)+$" * 200), ("yaml", "!!python/object/apply:os.system ['reboot']")):
        yield Hostile(f"code: {name}", box(text))
        yield Hostile(f"code: {name}, plain", text)


def patterns() -> Iterator[Hostile]:
    """Against the regular expressions of the extraction."""
    for unit in ("answer ", "answer is ", "final answer is ", "final answer ", "answer: $", "1 ", "1,000,", "=1", "(1+",
                 "1/(", "$1", "\\(1", "\\[1", " [1", "$\\boxed{1", "\\frac{1}{1", "**", "$ and ", "1 and ", "or $1$ ",
                 "answer:\n", "9 9/", "8!", "9^", "9^{9", "{9^9}^", "\\text{a", "\\text {", "answer\t"):
        yield Hostile(f"pattern {unit!r} 4096", (unit * 4096)[:4096])
        yield Hostile(f"pattern {unit!r} in a box", box((unit * 4096)[:4000]))


def clipped() -> Iterator[Hostile]:
    """What a cap leaves of `\\boxed{7}` and the like; nothing of it states 7."""
    for text in (r"\boxed{", r"\boxed{7", r"so it is \boxed{7", r"\boxed", r"\boxe", r"\boxed{\frac{7}{1}",
    r"The answer is \boxed{7",
                 r"Answer: \boxed{7", "Answer:", "The answer is",
                 "####", "<answer>"):
        yield Hostile(f"clipped {text!r}", text, WRONG)


def ending_right() -> Iterator[Hostile]:
    for name, before in (
            ("megabyte of brackets", "(" * MEGABYTE), ("megabyte of open boxes", "\\boxed{" * (MEGABYTE // 7)),
            ("tower", box("9^{9^{9^{9^9}}}")), ("NULs", "\x00" * 10_000), ("escapes", "\\" * 10_000),
            ("dollars", "$" * 999),
            ("emoji", "🙂" * 10_000), ("digits", "8" * 10_000), ("answers", "the answer is 8. " * 1000)):
        yield Hostile(f"right after: {name}", f"{before} so it is {box(REFERENCE)}.", RIGHT)
