"""The wordings of problems and solutions to draw from. Tables only.

A wording holds no number of its own, so that every number comes from the problem. Names in braces are filled in: `a`, `b` and `c` the two
operands and the result of a step, `q` and `p` its quotient and product, `e` an expression, `x` and `y` two expressions to compare, `t` the
terms of a sequence, `q` and `v` an equation and its unknown, `n` the answer; the others are words of a story.
"""

from __future__ import annotations

ASK_VALUE = (
    "What is {e}?",
    "Compute {e}.",
    "Work out {e}.",
    "Find the value of {e}.",
    "Evaluate {e}.",
    "Please calculate {e}.",
    "How much is {e}?",
    "Can you tell me what {e} equals?",
    "Simplify {e} to a single number.",
    "I need the result of {e}.",
)
ASK_PRODUCT = (
    *ASK_VALUE,
    "Multiply {a} by {b}.",
    "What do you get when you multiply {a} and {b}?",
    "What is {a} times {b}?",
    "Find the product of {a} and {b}.",
    "A hall has {a} rows with {b} seats in each row. How many seats is that?",
    "A rectangle is {a} units long and {b} units wide. What is its area?",
)
ASK_REMAINDER = (
    "What is the remainder when {a} is divided by {b}?",
    "Find {a} mod {b}.",
    "Divide {a} by {b}. What is left over?",
    "{a} is split into groups of {b}. How many remain?",
    "How much is left after taking {b} away from {a} as often as possible?",
    "Compute the remainder of {a} divided by {b}.",
    "A ribbon of {a} units is cut into pieces of {b} units. How long is the rest?",
    "Eggs go into trays of {b}. If there are {a} eggs, how many do not fill a tray?",
)
ASK_NEXT = (
    "What comes next: {t}, ...?",
    "Find the next number in the sequence {t}.",
    "Continue the pattern {t}, ...",
    "Which number follows {t}?",
    "The list {t} keeps going in the same way. What is its next entry?",
    "Look at {t}. Which number should come after the last one?",
    "Extend the sequence {t} by one term.",
)
ASK_LARGER = (
    "Which is larger, {x} or {y}? Give the larger value.",
    "Compare {x} with {y} and give the greater value.",
    "What is the maximum of {x} and {y}?",
    "Of {x} and {y}, take the bigger one. What is its value?",
    "Find the larger of the two numbers {x} and {y}.",
)
ASK_SMALLER = (
    "Which is smaller, {x} or {y}? Give the smaller value.",
    "Compare {x} with {y} and give the lesser value.",
    "What is the minimum of {x} and {y}?",
    "Of {x} and {y}, take the smaller one. What is its value?",
    "Find the lower of the two numbers {x} and {y}.",
)
ASK_SOLVE = (
    "Solve {q} for {v}.",
    "Find {v} if {q}.",
    "What is {v} when {q}?",
    "For which value of {v} does {q} hold?",
    "The equation {q} has one solution. What is {v}?",
    "Determine {v} from {q}.",
    "If {q}, what must {v} be?",
)
SUFFIXES = (
    "",
    "",
    "",
    " Show your steps.",
    " Explain briefly.",
    " Give the final answer in a box.",
    r" Put the answer in \boxed{}.",
    " Think step by step.",
)

OPENERS = (
    "Let's work this out step by step.",
    "We go one step at a time.",
    "Here is the working.",
    "Okay, let me see.",
    "Let me think.",
    "This takes a few small steps.",
    "I will do it carefully.",
    "Take it slowly.",
    "",
    "",
)
LINKS_FIRST = ("First, ", "To begin, ", "Start: ", "We have ", "Note that ", "")
LINKS_LATER = ("Then ", "Next, ", "Now ", "After that, ", "So ", "From there, ", "Also, ", "And ", "")
LINKS_LAST = ("Finally, ", "Last, ", "In the end, ", "Then ", "So ", "Now ", "At last, ", "")
CLOSERS = (
    r"The answer is \boxed{{{n}}}.",
    r"So the answer is \boxed{{{n}}}.",
    r"That gives \boxed{{{n}}}.",
    r"Final answer: \boxed{{{n}}}.",
    r"Therefore the result is \boxed{{{n}}}.",
    r"Hence \boxed{{{n}}}.",
    r"We end up with \boxed{{{n}}}.",
    r"In total: \boxed{{{n}}}.",
)

STEPS = {
    "+": (
        "{a} + {b} = {c}",
        "adding {b} to {a} gives {c}",
        "{a} plus {b} is {c}",
        "{a} and {b} make {c}",
        "{a} + {b} comes to {c}",
        "the sum of {a} and {b} is {c}",
        "going up from {a} by {b} we reach {c}",
    ),
    "-": (
        "{a} - {b} = {c}",
        "taking {b} from {a} leaves {c}",
        "{a} minus {b} is {c}",
        "{a} less {b} is {c}",
        "{a} - {b} comes to {c}",
        "the difference of {a} and {b} is {c}",
        "going down from {a} by {b} we reach {c}",
    ),
    "×": (
        "{a} × {b} = {c}",
        "{a} times {b} is {c}",
        "multiplying {a} by {b} gives {c}",
        "the product of {a} and {b} is {c}",
        "{a} × {b} comes to {c}",
    ),
    "÷": (
        "{a} ÷ {b} = {c}",
        "{a} divided by {b} is {c}",
        "dividing {a} by {b} gives {c}",
        "{b} × {c} = {a}, so {a} ÷ {b} = {c}",
        "{b} goes into {a} exactly {c} times",
    ),
    "mod": (
        "{b} goes into {a} {q} times, {b} × {q} = {p}, and {a} - {p} = {c}",
        "{q} × {b} = {p} is the largest multiple that fits, and {a} - {p} leaves {c}",
        "{a} = {b} × {q} + {c}, so {c} remains",
        "{b} fits {q} times, which makes {p}, and the rest is {a} - {p} = {c}",
    ),
}
DECOMPOSED_STEPS = (
    "{e} is {parts}, so {total}",
    "for {e} take {parts}: {total}",
    "{e} splits into {parts}, which makes {total}",
    "to get {e}, note {parts}, then {total}",
)

NAMES = (
    "Anna", "Ben", "Carla", "David", "Elena", "Felix", "Grace", "Hugo", "Ivy", "Jonas", "Kira", "Leo", "Maya", "Noah",
    "Olga", "Paul", "Rosa", "Sam", "Tara", "Victor", "Wendy", "Yusuf", "Zoe", "Amir", "Lin", "Priya", "Tom", "Nina",
)  # fmt: skip
ITEMS = (
    "apples", "pears", "books", "coins", "cards", "marbles", "stamps", "shells", "pencils", "stickers", "cookies",
    "buttons", "beads", "stones", "tickets", "flowers", "candles", "nuts", "lemons", "plums", "balls", "toys", "cups",
    "photos", "bricks", "seeds",
)  # fmt: skip
PLACES = ("market", "garden", "school", "beach", "shop", "park", "kitchen", "library", "fair", "cellar", "forest", "attic")
HOLDERS = ("boxes", "bags", "baskets", "trays", "jars", "shelves", "packs", "drawers")
STORY_START = (
    "{name} has {a} {item}.",
    "{name} starts with {a} {item}.",
    "There are {a} {item} in the {place}.",
    "In the morning {name} counts {a} {item}.",
    "{name} brings {a} {item} to the {place}.",
    "{name} owns {a} {item}.",
)
STORY_GROUPS = (
    "{name} has {a} {holder} with {b} {item} in each.",
    "There are {a} {holder} in the {place}, and each holds {b} {item}.",
    "{name} fills {a} {holder} with {b} {item} each.",
    "{name} buys {a} {holder} of {b} {item}.",
)
STORY_EVENTS = {
    "+": (
        "{friend} brings {b} more.",
        "{name} finds {b} more in the {place}.",
        "{name} buys another {b}.",
        "Then {b} new ones arrive.",
        "Later {friend} adds {b} to them.",
        "{name} gets {b} as a gift from {friend}.",
    ),
    "-": (
        "{name} gives {b} to {friend}.",
        "{b} of them are lost.",
        "{name} sells {b} at the {place}.",
        "Then {b} are taken away.",
        "{friend} borrows {b}.",
        "Later {b} of them break.",
    ),
    "×": (
        "Then the number grows to {b} times as many.",
        "By the end of the week there are {b} times as many.",
        "{friend} has {b} times as many as that, and only these are counted.",
    ),
    "÷": (
        "They are shared equally among {b} friends, and {name} keeps one share.",
        "They are packed evenly into {b} {holder}, and one of these is opened.",
        "Only one part out of {b} equal parts is kept.",
    ),
}
STORY_QUESTIONS = (
    "How many {item} is that?",
    "How many {item} are there now?",
    "How many {item} are there in the end?",
    "What is the number of {item} now?",
    "Count the {item}.",
)
STORY_OPENERS = (
    "We follow the number of {item}.",
    "Let's track the {item}.",
    "Keep a count of the {item}.",
    "Think about the {item} one event at a time.",
    "",
)
