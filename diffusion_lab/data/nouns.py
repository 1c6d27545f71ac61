"""The kind of a class noun (person, animal, object) and the prompt set that fits it.

A short table of common nouns. For a noun of several words the last one is used ("golden retriever"), unless the whole
noun is in the table ("teddy bear").
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

Kind = Literal["person", "animal", "object"]

SET_FOR: dict[Kind, str] = {
    "person": "portrait",
    "animal": "dreambooth_live",
    "object": "dreambooth_objects",
}
MADE_FOR: dict[str, Kind] = {
    "portrait": "person", "portrait_negative": "person", "miniature": "person", "miniature_negative": "person",
    "dreambooth_live": "animal", "dreambooth_objects": "object", "logo": "object",
}  # fmt: skip
OF_FACES = ("similarity", "similarity_heldout", "face_rate")  # metrics
PLURAL: dict[Kind, str] = {"person": "people", "animal": "animals", "object": "objects"}

_PEOPLE = """
    man woman person boy girl child kid baby toddler infant teenager teen adult guy lady gentleman male female human
    face head portrait selfie people men women children actor actress singer musician dancer athlete player footballer
    model celebrity artist painter writer author scientist teacher student doctor nurse chef cook soldier officer
    policeman policewoman firefighter pilot astronaut king queen prince princess president politician businessman
    businesswoman worker engineer farmer friend father mother dad mom mum parent grandfather grandmother grandpa
    grandma brother sister son daughter uncle aunt cousin husband wife bride groom couple dude bro influencer youtuber
    streamer character hero heroine
"""
_ANIMALS = """
    dog cat puppy kitten pet animal bird horse pony cow bull calf pig piglet sheep lamb goat donkey mule rabbit bunny
    hare hamster mouse rat gerbil squirrel chipmunk hedgehog ferret fox wolf bear panda koala kangaroo lion lioness
    tiger leopard cheetah jaguar panther lynx elephant giraffe zebra rhino rhinoceros hippo hippopotamus monkey ape
    gorilla chimpanzee orangutan lemur sloth deer elk moose reindeer antelope camel llama alpaca bison buffalo bat
    beaver otter badger raccoon skunk opossum seal walrus whale dolphin shark fish goldfish koi salmon trout octopus
    squid crab lobster turtle tortoise snake lizard gecko iguana chameleon crocodile alligator frog toad newt
    salamander chicken hen rooster cockerel duck duckling goose swan turkey peacock pigeon dove owl eagle hawk falcon
    parrot budgie cockatoo cockatiel canary finch sparrow robin crow raven magpie seagull penguin flamingo pelican
    ostrich emu stork heron bee wasp butterfly moth spider ant beetle ladybird ladybug dragonfly snail
    retriever labrador shepherd poodle corgi terrier bulldog pug beagle husky dachshund chihuahua dalmatian spaniel
    collie pomeranian rottweiler doberman boxer mastiff hound greyhound whippet shiba akita maltese schnauzer mutt
    tabby siamese persian sphynx bengal shorthair longhair ragdoll dinosaur dragon unicorn
"""
_OBJECTS = """
    object thing item product toy doll plushie plush figurine figure action-figure statue sculpture teapot cup mug
    glass bottle can bowl plate vase pot pan kettle jug spoon fork knife chair table desk sofa couch bed lamp clock
    watch backpack bag handbag purse suitcase wallet shoe sneaker boot sandal slipper hat cap shirt t-shirt dress
    jacket coat sweater skirt trousers jeans sock glove scarf ring necklace bracelet earring glasses sunglasses
    umbrella book candle mirror picture painting guitar piano violin drum car truck bus van bike bicycle motorcycle
    motorbike scooter train plane airplane boat ship phone smartphone laptop computer keyboard camera television tv
    radio headphones robot drone ball football basketball house building tower bridge castle church temple logo sign
    flag flower plant tree cactus fruit apple banana cake bread pizza burger cookie food drink box basket key coin
    badge mask helmet sword gun tool hammer
"""
_WHOLE: dict[str, Kind] = {
    "teddy bear": "object", "stuffed animal": "object", "toy car": "object", "rubber duck": "object",
    "wolf plushie": "object", "bear plushie": "object", "monster toy": "object", "duck toy": "object",
    "hot dog": "object", "action figure": "object", "computer mouse": "object", "rc car": "object",
    "rc_car": "object", "fashion model": "person", "old man": "person", "snowman": "object",
}  # fmt: skip

_IRREGULAR = {"mice": "mouse", "geese": "goose", "oxen": "ox", "persons": "person"}

_KINDS: dict[str, Kind] = {
    **dict.fromkeys(_OBJECTS.split(), "object"),
    **dict.fromkeys(_ANIMALS.split(), "animal"),
    **dict.fromkeys(_PEOPLE.split(), "person"),
}


def kind_of(noun: str) -> Kind | None:
    """ "person", "animal", "object", or None for a noun that is not in the table."""
    typed = noun.casefold().strip()
    whole = " ".join(re.split(r"[\s_-]+", typed))
    for table, word in ((_KINDS, typed), (_WHOLE, whole), (_KINDS, whole), (_KINDS, whole.split(" ")[-1])):
        for form in (word, *_singular(word)):
            if form in table:
                return table[form]
    return None


def _singular(word: str) -> tuple[str, ...]:
    """Possible singulars of an English plural."""
    forms = [_IRREGULAR[word]] if word in _IRREGULAR else []
    if word.endswith("s"):
        forms.append(word.removesuffix("s"))
    if word.endswith("es"):
        forms.append(word.removesuffix("es"))
    if word.endswith("ies"):
        forms.append(word.removesuffix("ies") + "y")
    if word.endswith("ves"):
        forms += [word.removesuffix("ves") + "f", word.removesuffix("ves") + "fe"]
    return tuple(forms)


def fitting_set(noun: str | None) -> str:
    """The prompt set for `prompts.name=auto`; for an unknown noun, that for objects."""
    kind = kind_of(noun) if noun else "person"
    return SET_FOR[kind or "object"]


def prompts_warnings(name: str, noun: str) -> list[str]:
    """For the plan: prompts made for another kind of subject, or a noun that is not in the table."""
    made_for, kind = MADE_FOR.get(name), kind_of(noun)
    if made_for is None or made_for == kind:
        return []
    if kind is None:
        others = [f"prompts={SET_FOR[k]} for {PLURAL[k]}" for k in SET_FOR if k != made_for]
        return [
            f"data.class_noun={noun}: is not in the table of nouns; prompts={name} are for {PLURAL[made_for]}, "
            f"{' and '.join(others)}"
        ]
    return [
        f"prompts={name}: they are for {PLURAL[made_for]}, and data.class_noun={noun} names {_a(kind)}; "
        f"prompts={SET_FOR[kind]} fit"
    ]


def faces_warnings(encoders: str, names: Sequence[str], noun: str) -> list[str]:
    """For the plan: metrics of human faces for a subject that has none. The miniature's subjects are people."""
    kind, asked = kind_of(noun), [name for name in names if name in OF_FACES]
    if encoders != "full" or kind in (None, "person") or not asked:
        return []
    instead = (
        "clip_image takes the place of similarity in the recommended step"
        if "clip_image" in names
        else "name clip_image or dino instead"
    )
    verb = "looks" if len(asked) == 1 else "look"
    return [
        f"metrics.names: {', '.join(asked)} {verb} for human faces, and data.class_noun={noun} names {_a(kind)}, so "
        f"expect to find none; {instead}"
    ]


def _a(kind: Kind | None) -> str:
    return f"{'an' if str(kind)[0] in 'aeiou' else 'a'} {kind}"
