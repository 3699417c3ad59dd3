"""Folders of one's own, clean and messy, made by the tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tlhelpers import folders
from tlhelpers.folders import Pictures, read


def picture(seed: int, *, side: tuple[int, int] = (40, 30), mode: str = "RGB") -> Image.Image:
    """Large blots of colour: unlike for unlike seeds, and still itself when saved anew."""
    rng = np.random.default_rng(seed)
    blots = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
    return blots.resize(side, Image.Resampling.BICUBIC).convert(mode)


def fill(home: Path, counts: dict[str, int], *, start: int = 0) -> Path:
    """A folder a class with so many pictures, all different."""
    for name, count in counts.items():
        (home / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            picture(start).save(home / name / f"picture {i}.png")
            start += 1
    return home


def parts_of(pictures: Pictures) -> dict[str, str]:
    return dict(zip(pictures.files["id"], pictures.files["part"], strict=True))


def test_a_clean_folder_is_split_by_rule_with_the_shares_asked_for(tmp_path: Path) -> None:
    home = fill(tmp_path / "pets", {"cats and kittens": 20, "dogs": 10})
    found = read(home)
    assert found.to_frame().loc["cats and kittens"].tolist() == [12, 4, 4]
    assert found.to_frame().loc["dogs"].tolist() == [6, 2, 2]
    assert found.left_out.empty
    assert found.copies.empty
    assert parts_of(found) == parts_of(read(home))
    assert found.data.x[0].shape == (3, 30, 40)
    assert "pets: 30 pictures of 2 classes (train 18, validation 6, test 6)" in repr(found)


def test_one_more_picture_moves_few_others(tmp_path: Path) -> None:
    home = fill(tmp_path, {"a": 40, "b": 40})
    before = parts_of(read(home))
    picture(999).save(home / "a" / "one more.png")
    after = parts_of(read(home))
    assert sum(after[name] != part for name, part in before.items()) <= 3 * 40 / 4


def test_three_pictures_a_class_are_enough_and_two_are_not(tmp_path: Path) -> None:
    home = fill(tmp_path, {"a": 3, "b": 3})
    assert (read(home).to_frame() == 1).all(axis=None)
    (home / "b" / "picture 0.png").unlink()
    with pytest.raises(ValueError, match=r"'b' has 2.*leave_out=\['b'\]"):
        read(home)
    fill(home, {"c": 5}, start=50)
    assert read(home, leave_out=["b"]).data.classes == ("a", "c")


def test_messy_files_are_read_or_named(tmp_path: Path) -> None:
    home = fill(tmp_path, {"a": 8, "b": 8})
    picture(100, mode="L").save(home / "a" / "grey.jpg")
    picture(101, mode="RGBA").save(home / "a" / "with transparency.png")
    picture(102, side=(2500, 1500)).save(home / "a" / "huge.webp")
    content = (home / "a" / "picture 0.png").read_bytes()
    (home / "b" / "cut off.png").write_bytes(content[: len(content) // 2])
    (home / "b" / "empty.jpg").write_bytes(b"")
    (home / "b" / "notes.txt").write_text("not a picture")
    (home / "b" / ".DS_Store").write_bytes(b"hidden")
    found = read(home)
    assert set(found.left_out["file"]) == {"b/cut off.png", "b/empty.jpg"}
    assert found.left_out["reason"].str.startswith("cannot be read: ").all()
    files = found.files.set_index("id")
    assert files.loc["a/grey.jpg", ["grey", "format"]].tolist() == [True, "jpeg"]
    assert files.loc["a/huge.webp", ["width", "height"]].tolist() == [2500, 1500]
    assert len(found.data) == 19


@pytest.mark.parametrize("again", ["smaller", "jpeg", "mirrored", "brighter"])
def test_copies_are_found_and_stay_on_one_side(tmp_path: Path, again: str) -> None:
    home = fill(tmp_path, {"a": 12, "b": 12})
    pairs = {}
    for i in range(12):
        name = f"picture {i}"
        original = picture(i, side=(120, 90))
        original.save(home / "a" / f"{name}.png")
        copied = {
            "smaller": original.resize((60, 45)),
            "jpeg": original,
            "mirrored": original.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
            "brighter": original.point(lambda value: round(40 + 0.8 * value)),
        }[again]
        suffix = ".jpg" if again == "jpeg" else ".png"
        copied.save(home / "a" / f"copy of {i}{suffix}")
        pairs[f"a/{name}.png"] = f"a/copy of {i}{suffix}"
    found = read(home)
    listed = {frozenset(pair) for pair in found.copies[["first", "second"]].to_numpy()}
    assert listed == {frozenset(pair) for pair in pairs.items()}
    parts = parts_of(found)
    assert all(parts[a] == parts[b] for a, b in pairs.items())
    assert len(set(parts.values())) == 3


def test_equal_pictures_count_once_and_contradictions_not_at_all(tmp_path: Path) -> None:
    home = fill(tmp_path, {"a": 6, "b": 6})
    picture(1).save(home / "a" / "z again.png")  # picture 1 of a
    picture(2).save(home / "b" / "z also b.png")  # picture 2 of a
    found = read(home)
    reasons = dict(found.left_out.to_numpy().tolist())
    assert reasons["a/z again.png"] == "the same picture as a/picture 1.png"
    assert set(reasons) == {"a/z again.png", "a/picture 2.png", "b/z also b.png"}
    assert "a and b" in reasons["b/z also b.png"]
    assert len(found.copies) == 2


def by_animal(identity: str) -> str:
    return identity.split("/")[1].split(" ")[0]


def animals(home: Path, counts: dict[str, int], each: int = 4) -> Path:
    for number, (name, count) in enumerate(counts.items()):
        (home / name).mkdir(parents=True)
        for animal in range(count):
            for view in range(each):
                shown = picture(1000 * number + 10 * animal + view)
                shown.save(home / name / f"{name}{animal} view {view}.png")
    return home


@pytest.mark.parametrize("way", ["function", "ids", "names"])
def test_groups_stay_whole(tmp_path: Path, way: str) -> None:
    home = animals(tmp_path, {"cat": 10, "dog": 10})
    ids = [path.relative_to(home).as_posix() for path in home.rglob("*.png")]
    groups: folders.Groups = {
        "function": by_animal,
        "ids": {i: by_animal(i) for i in ids},
        "names": {i.split("/")[1]: by_animal(i) for i in ids},
    }[way]
    found = read(home, groups=groups)
    assert (found.files.groupby("group")["part"].nunique() == 1).all()
    assert found.to_frame()[["train", "validation", "test"]].loc["cat"].tolist() == [24, 8, 8]
    assert found.to_frame()["groups"].tolist() == [10, 10]
    assert "20 groups" in repr(found)


def test_a_folder_within_a_class_can_be_a_group(tmp_path: Path) -> None:
    for c, name in enumerate("ab"):
        for animal in range(4):
            home = tmp_path / name / str(animal)
            home.mkdir(parents=True)
            for view in range(2):
                picture(100 * c + 10 * animal + view).save(home / f"{view}.jpg")
    found = read(tmp_path, groups="folder")
    assert found.files["group"].nunique() == 8  # a/0 and b/0 are not one
    with pytest.raises(ValueError, match="groups='folder'"):
        read(tmp_path)


def test_missing_and_too_few_groups_are_errors(tmp_path: Path) -> None:
    home = animals(tmp_path, {"cat": 4, "dog": 2})
    with pytest.raises(ValueError, match=r"24 of 24 .* have none \(first: cat/cat0 view 0.png\)"):
        read(home, groups={"elsewhere.png": "x"})
    with pytest.raises(ValueError, match="'dog' has 2"):
        read(home, groups=by_animal)
    with pytest.raises(ValueError, match="a function, a mapping, 'folder' or None"):
        read(home, groups="animal")


def divided(home: Path, *parts: str) -> Path:
    for i, part in enumerate(parts):
        fill(home / part, {"a": 6, "b": 6}, start=100 * i)
    return home


def test_a_given_division_is_kept_and_validation_cut_from_training(tmp_path: Path) -> None:
    found = read(divided(tmp_path, "Train", "Test"))
    assert found.given
    assert found.to_frame().loc["a"].tolist() == [4, 2, 6]
    in_test = found.files[found.files["part"] == "test"]
    assert in_test["id"].str.startswith("Test/").all()
    assert "validation cut from training" in found.data.split_name


def test_leaks_of_a_given_division_are_found_and_taken_out_of_training(tmp_path: Path) -> None:
    home = divided(tmp_path, "train", "val", "test")
    picture(200).save(home / "train" / "a" / "leak.png")  # the first picture of the test
    picture(201).resize((80, 60)).save(home / "val" / "a" / "leak.png")
    picture(100).save(home / "train" / "a" / "leak of val.jpg", quality=90)
    found = read(home)
    reasons = dict(found.left_out.to_numpy().tolist())
    assert set(reasons) == {"train/a/leak.png", "val/a/leak.png", "train/a/leak of val.jpg"}
    assert "test/a/picture 0.png" in reasons["train/a/leak.png"]
    assert reasons["train/a/leak of val.jpg"].endswith("which is in validation")
    assert found.to_frame().loc["a"].tolist() == [6, 6, 6]
    crossing = found.copies[["first_part", "second_part"]]
    assert (crossing["first_part"] != crossing["second_part"]).all()


def test_a_group_in_training_and_test_of_a_given_division_leaks(tmp_path: Path) -> None:
    home = divided(tmp_path, "train", "test")
    groups = {}
    for path in home.rglob("*.png"):
        identity = path.relative_to(home).as_posix()
        groups[identity] = identity
    groups["train/a/picture 0.png"] = groups["test/a/picture 3.png"] = "Tom"
    found = read(home, groups=groups)
    assert found.left_out["file"].tolist() == ["train/a/picture 0.png"]


Breaking = Callable[[Path], object]

BROKEN: list[tuple[Breaking, str]] = [
    (lambda home: fill(home, {"cats": 5}), "2 classes or more.*'cats' alone"),
    (lambda home: home.mkdir(exist_ok=True), "found none"),
    (lambda home: [fill(home, {"a": 4, "b": 4}), picture(0).save(home / "x.png")], "x.png"),
    (lambda home: [fill(home, {"a": 4, "b": 4}), (home / "c").mkdir()], "without a picture: c"),
    (
        lambda home: [fill(home, {"a": 4, "b": 4}), (home / "a" / "x.heic").write_bytes(b"-")],
        r"not read here \(a/x.heic\)\. Convert",
    ),
    (lambda home: divided(home, "train", "val"), "needs a training and a test folder"),
    (
        lambda home: [divided(home, "train", "test"), fill(home / "test", {"c": 3}, start=900)],
        r"c: in the test folder .* leave_out=\['c'\]",
    ),
]


@pytest.mark.parametrize(("make", "message"), BROKEN, ids=[message for _, message in BROKEN])
def test_folders_that_cannot_be_used_are_refused(
    tmp_path: Path, make: Breaking, message: str
) -> None:
    home = tmp_path / "home"
    make(home)
    with pytest.raises(ValueError, match=message):
        read(home)


def test_other_mistakes(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="one folder a class"):
        read(tmp_path / "nothing")
    home = fill(tmp_path, {"a": 4, "b": 4})
    with pytest.raises(ValueError, match="no class 'c' to leave out; it has a, b"):
        read(home, leave_out=["c"])
    with pytest.raises(ValueError, match="shares above 0"):
        read(home, train=0.9, validation=0.1)


def test_facts_hold_nothing_of_the_content(tmp_path: Path) -> None:
    home = fill(tmp_path, {"a": 5, "b": 5})
    for i in range(5):
        picture(i, side=(60, 30), mode="L").save(home / "b" / f"picture {i}.png")
    facts = read(home).facts()
    assert facts.x.shape == (10, 5)
    table = pd.DataFrame(facts.x.numpy()).assign(label=facts.labels.numpy())
    assert (table.groupby("label").nunique() == 1).all(axis=None)
    assert not table.drop_duplicates("label").iloc[0].equals(table.drop_duplicates("label").iloc[1])
