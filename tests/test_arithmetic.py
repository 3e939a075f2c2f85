"""False equations are detected; equations that are true or part of a longer expression are not reported."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dartune.text.equations import false_equations
from dartune.text.prefix_notation import with_infix

whole_numbers = st.integers(0, 10**6)


@given(whole_numbers, whole_numbers, st.sampled_from("+-*"), st.sampled_from(["", " "]))
def test_true_sum_passes_and_off_by_one_is_reported(a, b, sign, space):
    a, b = max(a, b), min(a, b)
    value = {"+": a + b, "-": a - b, "*": a * b}[sign]
    text = f"So it is {a}{space}{sign}{space}{b}{space}={space}{{}} pens ."
    assert not false_equations(text.format(value))
    assert false_equations(text.format(value + 1)) == {f"{a}{sign}{b}={value + 1}"}


@pytest.mark.parametrize(
    "text",
    [
        "2 + 3 * 4 = 14",
        "1,000 + 5 = 1,005",
        "(2 + 3) * 4 = 20",
        "65% of 20 = 13",
        "500*0.25=125 and 6750*$0.25=$1687.5",
        "1/4 * 3200 = 800",
        "2 / 3 = 0.67 or 2 / 3 = 0.66",
        "2 1/2 + 1 = 3 1/2",
        "25% * 80 = 20",
        "12 x 3 = 36",
        r"$5 \cdot 6 = 30$ and $30 \times 2 = 60$",
        "x^2 - 1 = 64 - 1 = 63",
        "5 / 0 = 7",
        "1/2 + 1/4 = 3/4",
        r"\frac{49}{4} - 4 = \frac{33}{4} and \frac{8+15+17}{2} = 20 and \sqrt{8^2 + 15^2} = \sqrt{289} = 17",
        "Pavel (9) + Nkechi (22) + Wren (11) = 42",
        "4x · 3/4 = 3x, so 2x + 3 + 4 = 9",
        "25% of 20 + 3 = 8",
        "2023 = 12 * 168 + 7",
        "60 - 9 = 60 - 9\\pi",
        "**Total** = 3 + 4 = **7**",
        "9^9^9^9 + 1 = 3",
        "half of 7 is 3.5, 7 * 0.5 = 3.5",
        "3 + 4 = 8 - 1",
        "10 / 3 = 3",
        "10 / 3 = 3",
        "10 / 3 = 3.3",
        "0.125 * 3 = 0.38",
        "20% - 5% = 15%",
        "10 / 40 * 100 = 25%",
        "12 / 5 = 2 R 2",
        "3 / 4 = 0.75",
        "6 * $3 = $18 and $18 / 2 = $9",
        "a total of 12 = 12",
        "2 ** 3 = 8 and 2**3 = 8 and 3 **2 + 4 **2 = 25 and 2 ** 3 = **8**",
        "**Step 1:** 3 + 4 = 7",
        "1. **Add:** 3 + 4 = **7** apples",
        "**1.** 3 + 4 = 7",
        "17 - 2 = **3** * **5** = **15**",
        r"12 + 3 &= 15 \\ &= 10 + 5 \\ &= \boxed{15}",
        r"\begin{align*} 3x + 4 &= 19 \\[4pt] 3x &= 15 \\ x &= 5 \end{align*}",
        r"\begin{align*} 3 + 4 &= 7 \\ -2 + 5 &= 3 \end{align*}",
        r"x &= 12 \\ &- 4 + 2 = 10",
        "12 &- 3 + 4 = 13",
        "f(3) = 2 * 3 + 1\n     = 6 + 1\n     = 7",
        "Total of 5 + 3.\n= 9",
        "Chapter 3 + 4\n======\n8 = 8",
        "3 + 4 =\n5 + 6 =",
        "3 + 4 = 7\n=> x = 4",
        "Ann: 3 + 4 = **7**\nBob: 7 - 2 = **5**",
        r"x_{1} + 3 = {4} and 2^{3} + 1 = \boxed{9} and \sqrt[3]{27} - 1 = 2",
        r"25\% \cdot 60 = \boxed{15} and 19 / 20 = \boxed{95}\% = 95 \%",
        r"12 \div 5 = \boxed{2} \text{ R } 2",
        r"98 + 2 = \boxed{2} \pmod{7} and 98 + 2 = 2 (mod 7)",
        "12:30 + 2 = 14:30",
        r"100 / 7 = 14.2857 ≈ 14 and 368 + 247 \approx 600",
        r"(3 + 4) \text{ apples} = \textbf{7}",
        "",
    ],
)
def test_true_or_uncheckable_equations_pass(text):
    assert not false_equations(text)


@pytest.mark.parametrize(
    ("text", "false"),
    [
        ("12 beads + 15 beads = 28 beads.", "12+15=28"),
        ("So 27 beads - 8 beads = 21 beads, so 19 remain", "27-8=21"),
        (r"12\text{ beads} + 15\text{ beads} = 28\text{ beads}", "12+15=28"),
        ("36 pages / 1.5 min = 25 pages", "36/1.5=25"),
        (r"\text{Total} = 12\text{ beads} + 15\text{ beads} = 28\text{ beads}", "12+15=28"),
        ("36 divided by 1.5 is 20, so", "36/1.5=20"),
        ("Four plus seven equals twelve.", "4+7=12"),
        ("20% of 250 is 60.", "(20/100)*250=60"),
        ("Half of 300 is 160.", "(1/2)*300=160"),
        ("2 1/2 + 1 1/4 = 4", "(2+1/2)+(1+1/4)=4"),
        ("10 - ¾ = 9 1/2", "10-3/4=(9+1/2)"),
        ("3 × 1½ = 5", "3*(1+1/2)=5"),
        (r"2\frac{1}{2} + 1\frac{1}{4} = 4", "(2+1/2)+(1+1/4)=4"),
        ("2 x (5 + 3) = 17", "2*(5+3)=17"),
        ("7x8=54", "7*8=54"),
        ("2³ = 9", "2**3=9"),
        ("√16 + 1 = 4", "sqrt(16)+1=4"),
        ("16 eggs minus 3, which is 9.", "16-3=9"),
        ("1/4 of 48 is 13", "(1/4)*48=13"),
        ("48 clips + 24 clips equals 73 clips", "48+24=73"),
        ("50 - 20% = 45", "50*(1-20/100)=45"),
        ("Week 1 = 5 + 3 = 9", "5+3=9"),
    ],
)
def test_false_equations_with_units_or_words_are_reported(text, false):
    assert false_equations(text) == {false}


@pytest.mark.parametrize(
    "text",
    [
        "12 beads + 15 beads = 27 beads",
        "2 hours + 30 minutes = 150 minutes",
        "30 min + 30 min = 1 hour",
        "25 cents * 4 = 1 dollar",
        "2 dozen + 3 = 27",
        "2 weeks * 7 days = 14 days",
        "3 * 4 apples + 2 apples = 14 apples",
        "8 people x 1 1/2 = 12 rolls",
        "at 7:50 + 30 minutes = 8:20",
        "Week 1 = 5 + 3 = 8, and Week 1 + Week 2 = 8 + 5 = 13",
        "17/5 = 3 full boxes, 22/4 = 5 R2",
        "17 ÷ 5 = 3 with 2 left over",
        "22 / 4 = 6 (rounded up)",
        "$50 - 20% = $40, 50 + 10% = 55",
        "$2.50 - $2.24 = 26 cents; $1.50 + 75 cents = $2.25",
        "6 * 50 cents = $3.00",
        "1 and 1/2 * 60 = 90",
        "2 1/2 + 1 1/4 = 3 3/4, and 3 × 1½ = 4.5",
        "- 5 1/2 = 4.5",
        "20 minutes / 240 minutes = 8.333...%",
        "1/4 cup + 1 and 1/4 cup = 1.5 cups",
        "36 divided by 1.5 is 24, and a third of 10 is 3.33",
        "because 30 plus 28 plus 32 equals 90",
        "10 divided by 4 is 2 remainder 2",
        "5 times 3 is 15 more, 2 plus 3 times 4 is 14, 3 of 12 is 4",
        "25% of 60 is $15",
    ],
)
def test_true_or_undecidable_equations_with_units_or_words_pass(text):
    assert not false_equations(text)


@pytest.mark.parametrize("text", ["72 × 3 ≈ 320", r"\frac{100}{7} \approx 20"])
def test_estimate_beyond_the_tolerance_is_reported(text):
    assert len(false_equations(text)) == 1


FORMS = (
    *("{} = **{}**", "**{}** = {}", "**{} = {}**", "**{}** = **{}**", "`{}` = `{}`", "{} = `{}`", "{} = *{}*"),
    *("{}\n= {}", "{}\n  = **{}**", "$$ {} $$\n\n$$ = {} $$", "{} =\n{}", "{} = $\\boxed{{{}}}$", "{} = {{{}}}"),
    *(
        "\\boxed{{{} = {}}}",
        "{} = \\mathbf{{{}}}",
        "{} = \\boxed{{\\textbf{{{}}}}}",
        "{} = **${}**",
        "**Step 1:** {} = {}",
    ),
    *("{} &= {}", "{} & = {}", "x &= {} \\\\ &= {} \\\\", "\\begin{{align}} {} &= {} \\\\[2pt] x &= 3 \\end{{align}}"),
    *(
        "**Step 1:** {} = {}",
        "- **Total:** {} = **{}** pens",
        "| {} = {} |",
        "{} = \\underline{{{}}}",
        "${}$ = **${}$**",
    ),
)


@given(whole_numbers, whole_numbers, st.sampled_from("+-*"), st.sampled_from(["", " "]), st.sampled_from(FORMS))
def test_sums_are_read_in_common_layouts(a, b, sign, space, form):
    a, b = max(a, b), min(a, b)
    value = {"+": a + b, "-": a - b, "*": a * b}[sign]
    text = f"First.\n\n{form}\n\nSo we go on with {a} pens."
    assert not false_equations(text.format(f"{a}{space}{sign}{space}{b}", value))
    assert false_equations(text.format(f"{a}{space}{sign}{space}{b}", value + 1)) == {f"{a}{sign}{b}={value + 1}"}


@given(st.lists(whole_numbers, min_size=2, max_size=5), st.sampled_from(["\n= {}", " \\\\\n&= {}", " = **{}**"]))
def test_each_step_of_a_chain_is_checked(parts, step):
    total = sum(parts)
    right = "x = " + " + ".join(map(str, parts)) + "".join(step.format(f"{total - n} + {n}") for n in parts)
    assert not false_equations(right + step.format(total))
    assert false_equations(right + step.format(total + 1)) == {f"{total - parts[-1]}+{parts[-1]}={total + 1}"}


def test_each_false_equation_is_reported_once():
    text = "Ada is 12 + 3 = 24 , Ben is 9 + 3 = 12 , again 12 + 3 = 24 . Uma = 22 - 7 = 14 ; 24 / 4 = 7 , 4 * $6 = $20"
    text += r" . 0.5 * 294 + 52 = 196 . $5 \cdot 6 = 31$"
    text += r" . $\frac{49}{4} - 3 = \frac{33}{4}$ , \sqrt{279} = 18"
    reported = false_equations(text)
    assert {"((49)/(4))-3=((33)/(4))", "sqrt(279)=18"} <= reported
    assert reported - {"((49)/(4))-3=((33)/(4))", "sqrt(279)=18"} == {"0.5*294+52=196", "5*6=31"} | {
        "12+3=24",
        "22-7=14",
        "24/4=7",
        "4*6=20",
    }


@pytest.mark.parametrize(
    ("text", "infix"),
    [
        ("* 56 9 = 504", "56 * 9 = 504"),
        ("- * 8 3 4 = 20\n+ -6 12 = 6", "(8 * 3) - 4 = 20\n-6 + 12 = 6"),
        ("+ + 2 3 4", "(2 + 3) + 4"),
        ("/ 10 4/5 = 12.5", "10 / (4/5) = 12.5"),
        ("- 72 - 12 = 60", "- 72 - 12 = 60"),
        ("* Mia has 3 = 3", "* Mia has 3 = 3"),
        ("5 * 6 = 30", "5 * 6 = 30"),
        ("- 24 hours", "- 24 hours"),
    ],
)
def test_prefix_notation_is_converted_to_infix(text, infix):
    assert with_infix(text) == infix


@pytest.mark.parametrize("text", ["- * 8 3 4 = 21", "* 36 2 = 71\n#### 71", "+ + 36 72 60 = 169"])
def test_false_prefix_equation_is_reported(text):
    assert false_equations(text)
    assert not false_equations(text.replace("21", "20").replace("71", "72").replace("169", "168"))


@pytest.mark.parametrize("text", ["- 2 1/2 = 2.5", "* 1 3/4 = 1.75"])
def test_a_mixed_number_in_a_list_is_no_prefix_notation(text):
    assert not false_equations(text)
