"""Tasks in the manner of RULER (Hsieh et al., 2024), and the chain of keys of the Recycled Attention paper: long texts, and
questions that only some of their lines answer.

usage: tasks.py FOLDER TOKENS TEXTS [TASK...]

Writes FOLDER/TASK_NN.txt: a text of about so many tokens, then questions, each behind a line "---- in order" or "---- in any
order" and before its answers: lines "=> LEAD|ANSWER", where LEAD is what comes before the answer if the ones before it were
right. The same arguments make the same files.
"""

import pathlib
import random
import string
import sys

WORDS = """
acorn anchor apple apron arrow autumn badge bamboo banjo barn basket beach bean bell bench berry bicycle bishop blanket
bottle branch brick bridge broom brush bucket butter button cabin cactus candle canyon carpet carrot castle cedar cellar chain
chalk cheese cherry chimney circle clay cliff clock cloud clover coal coat coffee comet copper coral corn cotton cradle crane
crown crystal curtain daisy desert diamond dolphin donkey door dragon drum eagle earth elbow engine falcon farm feather fence
fern field finger flag flame flute forest fork fox frost garden garlic gate ghost glass glove goat gold goose grape grass guitar
hammer harbor harp hat hawk hazel helmet herb hill honey horn horse hotel island ivory jacket jewel jungle kettle king kitchen
kite knife ladder lake lamp lantern lawyer leaf lemon letter lily lion lizard magnet maple marble market mask meadow melon metal
mirror monkey moon mountain mouse mushroom needle nest oak ocean olive onion orange orchard otter oven owl oyster paint palace
palm panda paper parrot peach pearl pencil pepper piano pigeon pillow pine planet plum pocket pond potato prince pumpkin puppet
queen quilt rabbit radio rain raven ribbon rice ring river robin rocket roof root rope rose saddle sail salt sand scarf school
shell shield ship silk silver skull snake snow soap spade spider spoon spring star steel stone stool storm straw sugar summer
swan sword table tail tea temple thunder ticket tiger tower trumpet tulip tunnel turtle umbrella valley velvet violin wagon
walnut water whale wheat wheel willow window winter wolf wood wool yard zebra
""".split()
FILLERS = [
    "The meadow was quiet in the morning and the road was empty.",
    "A boat lay by the river, and nobody had used it for a year.",
    "In the afternoon it began to rain, and the windows were closed.",
    "The baker counted his loaves and found that one was missing.",
    "Far away a train went over the bridge, as it did every day.",
    "The children played in the yard until the lamps were lit.",
]


def words(rng, count):
    return rng.sample(WORDS, count)


def number(rng):
    return str(rng.randrange(10000, 99999))


def haystack(rng, tokens, needles):
    """Filler sentences with the needles at random places, in their order."""
    text = [rng.choice(FILLERS) for _ in range(tokens // 14)]
    for place, needle in zip(sorted(rng.sample(range(len(text)), len(needles))), needles):
        text[place] = needle
    return " ".join(text)


def shuffled(rng, lists):
    """All elements of the lists, those of one in their order."""
    turns = [i for i, one in enumerate(lists) for _ in one]
    rng.shuffle(turns)
    iterators = [iter(one) for one in lists]
    return [next(iterators[i]) for i in turns]


def question(asked, begun, answers, lead="", order="in order"):
    """Beside a question there is the beginning of the answer: a model that only goes on with texts can give it."""
    leads = [""] + [lead] * (len(answers) - 1) if isinstance(lead, str) else lead
    lines = "".join(f"\n=> {lead}| {answer}" for lead, answer in zip(leads, answers))
    return f"\n---- {order}\nQuestion: {asked}\nAnswer: {begun}{lines}"


def secret_of(key, value):
    return question(f"What is the secret number of {key}?", f"The secret number of {key} is", [value])


def single(rng, tokens):
    """Needles each of another kind."""
    one, ship, town = words(rng, 3)
    secret, year, code = number(rng), str(rng.randrange(1500, 1900)), number(rng)
    needles = [f"The secret number of {one} is {secret}.", f"The ship {ship} was built in {year}.",
               f"The code of the gate of {town} is {code}."]
    rng.shuffle(needles)
    return haystack(rng, tokens, needles), [
        secret_of(one, secret),
        question(f"In which year was the ship {ship} built?", f"The ship {ship} was built in", [year]),
        question(f"What is the code of the gate of {town}?", f"The code of the gate of {town} is", [code])]


def secrets(rng, tokens):
    """One in 14 sentences is a needle."""
    pairs = [(key, number(rng)) for key in words(rng, tokens // 200)]
    return pairs, haystack(rng, tokens, [f"The secret number of {key} is {value}." for key, value in pairs])


def multi_key(rng, tokens):
    pairs, text = secrets(rng, tokens)
    return text, [secret_of(key, value) for key, value in rng.sample(pairs, 4)]


def multi_query(rng, tokens):
    pairs, text = secrets(rng, tokens)
    asked = rng.sample(pairs, 12)
    questions = []
    for some in (asked[:4], asked[4:8], asked[8:]):
        keys = ", ".join(key for key, _ in some)
        leads = [""] + [f". The secret number of {key} is" for key, _ in some[1:]]
        questions.append(question(f"What are the secret numbers of {keys}?", f"The secret number of {some[0][0]} is",
                                  [value for _, value in some], leads))
    return text, questions


def multi_value(rng, tokens):
    keys = words(rng, 3)
    values = {key: [number(rng) for _ in range(4)] for key in keys}
    lines = [[f"A secret number of {key} is {value}." for value in values[key]] for key in keys]
    return haystack(rng, tokens, shuffled(rng, lines)), [
        question(f"What are the four secret numbers of {key}?", f"The secret numbers of {key} are", values[key], ",",
                 "in any order") for key in keys]


def tracking(rng, tokens):
    """Three chains of five variables each."""
    names = ["".join(rng.choices(string.ascii_uppercase, k=3)) for _ in range(15)]
    chains = {value: names[5 * i:5 * i + 5] for i, value in enumerate(rng.sample(range(10000, 99999), 3))}
    lines = [[f"VAR {chain[0]} = {value}."] + [f"VAR {b} = VAR {a}." for a, b in zip(chain, chain[1:])]
             for value, chain in chains.items()]
    return haystack(rng, tokens, shuffled(rng, lines)), [
        question(f"Which five variables have the value {value}?", f"The variables with the value {value} are VAR", chain,
                 ", VAR", "in any order") for value, chain in chains.items()]


def common_words(rng, tokens):
    """Ten words that come ten times as often as the others."""
    every = words(rng, min(len(WORDS), 10 + tokens // 45))
    listed = every[:10] * 30 + every[10:] * 3
    rng.shuffle(listed)
    return " ".join(f"{i + 1}. {one}" for i, one in enumerate(listed)), [
        question("Which ten words are the most common in the list above?", "The ten most common words are", every[:10],
                 ",", "in any order")]


def chain_of_keys(rng, tokens):
    """Keys a-b, each of which begins as exactly one other ends: ten of the chain, one after another."""
    chain = words(rng, min(len(WORDS), tokens // 20))
    keys = [f"{a}-{b}" for a, b in zip(chain, chain[1:])]
    return haystack(rng, tokens, [f"A key: {key}." for key in rng.sample(keys, len(keys))]), [
        question(f"Each key begins with the word that another one ends with. Which keys follow {keys[i]}?",
                 f"{keys[i]}, {keys[i + 1]},", keys[i + 2:i + 12], ",") for i in rng.sample(range(len(keys) - 12), 3)]


TASKS = {task.__name__: task for task in (single, multi_key, multi_value, multi_query, tracking, common_words, chain_of_keys)}


def main():
    folder, tokens, texts, *wanted = sys.argv[1:]
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name in wanted or TASKS:
        for i in range(int(texts)):
            text, questions = TASKS[name](random.Random(f"{name} {i}"), int(tokens))
            (folder / f"{name}_{i:02}.txt").write_text(text + "".join(questions) + "\n")


if __name__ == "__main__":
    main()
