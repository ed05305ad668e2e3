"""One pass over an output: compare plan, listing, footers, keys and `_SUCCESS.json`."""

import hashlib
import heapq
import re
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import fsspec
import pyarrow as pa

from bottleneck.audit.data_file import check_footer
from bottleneck.audit.objects import FORMAT, SUCCESS, SUCCESS_SHARD, Objects, Wrong, check_counts, check_fields, expect
from bottleneck.audit.plan import AuditedPlan
from bottleneck.audit.report import Report
from bottleneck.audit.revisions import Before
from bottleneck.audit.rows import check_data
from bottleneck.errors import StoreError, UsageError

_EXTENSION = re.compile(r"plan/extension-[0-9]{5}\.json")
_PART = re.compile(r"plan/[0-9a-f]{8}-[0-9]{8}-[0-9a-f]{8}\.parquet")
_LEFTOVER = re.compile(r"(.*/)?\.[^/]+\.[0-9]+-[0-9a-f]{8}", re.DOTALL)
_SUCCESS = "_SUCCESS.json"
_NUM_THREADS = 16
OnShard = Callable[[int, int], None]


def list_objects(output: str) -> Objects:
    try:
        fs, root = fsspec.core.url_to_fs(output)
    except (ValueError, ImportError) as error:
        raise UsageError(f"Cannot read outputs like {output}: {error}. Give a folder or an s3:// URI.") from error
    root = root.rstrip("/")
    try:
        fs.invalidate_cache()
        found = fs.find(root, detail=True)
    except FileNotFoundError:
        found = {}
    except Exception as error:  # as in Objects.read
        raise StoreError(
            f"{output} cannot be listed: {type(error).__name__}: {error}. Check its name, rights and network."
        ) from error
    sizes = {path[len(root) + 1 :]: info["size"] or 0 for path, info in sorted(found.items())}
    if "plan.json" not in sizes:
        received = f"{len(sizes)} other objects ({', '.join(list(sizes)[:3])}, ...)" if sizes else "nothing"
        raise UsageError(
            f"There is no plan in {output}: expected a plan.json. Received: {received}. "
            "Check the name of the output, or plan it first (`bottleneck plan`)."
        )
    return Objects(fs, root, sizes)


class Verification:
    """One look at an output, and what was found so far."""

    def __init__(self, objects: Objects, full: bool, on_shard: OnShard) -> None:
        self.objects, self.full, self.on_shard = objects, full, on_shard
        self.plan = AuditedPlan({})
        self.images: dict[int, int] = {}
        """By shard, as the good parts of the plan say."""
        self.statuses: dict[int, Counter[str]] = {}
        """By shard, as the good footers say."""
        self.revisions: dict[int, int] = {}
        """The same."""
        self.corrupt: set[tuple[str, str]] = set()
        self.unfinished = "the plan is corrupt, nothing else was checked"

    def run(self) -> Report:
        self._read_plan()
        if self.plan.documents:
            self._check_footers()
            for name in self.plan.documents:
                self._check_listing(name)
            if self.full and len(self.plan.documents) > 1:
                self._check_keys_unique()
            self._check_success()
        return self._report()

    @contextmanager
    def _naming(self, name: str, otherwise: str) -> Iterator[None]:
        """Note what is wrong with an object; what reading bytes that are none of ours raises means `otherwise`."""
        try:
            yield
        except Wrong as wrong:
            self.corrupt.add((name, str(wrong)))
        except (AttributeError, KeyError, TypeError, ValueError, OSError, pa.ArrowException) as error:
            self.corrupt.add((name, f"{otherwise}: {type(error).__name__}: {error}"))

    def _read_plan(self) -> None:
        """Read all of the plan, or nothing."""
        plan = self.plan
        extensions = filter(_EXTENSION.fullmatch, self.objects.sizes_bytes)
        for number, listed in enumerate(["plan.json", *extensions]):
            name = f"plan/extension-{number:05d}.json" if number else "plan.json"
            with self._naming(name, "does not have the fields of a plan"):
                if listed != name:
                    raise Wrong(f"is not there, though {listed} is")
                plan = plan.extend(self.objects, name)
            if self.corrupt:
                return
        self.plan = plan

    def _check_footers(self) -> None:
        def check(shard: int) -> None:
            name = self.plan.data_name(shard)
            if name in self.objects.sizes_bytes:
                with self._naming(name, "its footer does not have our fields"):
                    self.statuses[shard], self.revisions[shard] = check_footer(self.objects, self.plan, shard)

        num_shards = self.plan.num_shards
        with ThreadPoolExecutor(_NUM_THREADS) as pool:
            for done, _ in enumerate(pool.map(check, range(num_shards)), 1):
                if not self.full:
                    self.on_shard(done, num_shards)

    def _shards(self, name: str) -> Iterator[tuple[int, pa.Table]]:
        """Each shard of a plan's document with its images, but for those of corrupt parts; one part is in memory."""
        after = ""
        for part in self.plan.documents[name]["parts"]:
            with self._naming(part["name"], "is not readable Parquet"):
                for shard, images in self.plan.read_part(self.objects, name, part, after):
                    yield shard, images
                    after = images["key"][-1].as_py()

    def _check_listing(self, name: str) -> None:
        """Compare a plan's document with its parts, and these with the data files."""
        document = self.plan.documents[name]
        number = list(self.plan.documents).index(name) if "revised" in document else 0
        before = Before(self.plan, self.objects, number)
        num_images = num_bytes = 0
        labels, listing = Counter[str](), hashlib.sha256()
        for shard, images in self._shards(name):
            if number:
                with self._naming(name, "revises a shard that cannot be read"):
                    before.check(shard, images)
            columns = (images[column].to_pylist() for column in ("key", "size", "etag", "label"))
            for key, size, etag, label in zip(*columns, strict=True):
                num_bytes += size
                listing.update(f"{key}\0{size}\0{etag}\n".encode())
                if label is not None:
                    labels[label] += 1
            num_images += images.num_rows
            if not number:
                self.images[shard] = images.num_rows
            if self.revisions.get(shard, 0) == number:
                self._check_data(shard, images)
        totals: dict[str, Any] = {
            field: sum(part[field] for part in document["parts"]) for field in ("images", "shards")
        }
        if num_images == totals["images"]:  # no part is corrupt
            totals |= {"bytes": num_bytes, "label_counts": dict(labels), "listing_sha256": listing.hexdigest()}
        for field, total in totals.items():
            with self._naming(name, ""):
                expect(f"{field} is", document[field], total, "but its parts have")
        if number and before.is_whole and num_images == totals["images"]:
            replaced = {"replaced_bytes": before.num_bytes, "replaced_label_counts": dict(before.labels)}
            for field, total in replaced.items():
                with self._naming(name, ""):
                    expect(f"{field} is", document[field], total, "but before its shards have")

    def _check_data(self, shard: int, images: pa.Table) -> None:
        if shard in self.statuses:
            num_rows = self.statuses[shard].total()
            with self._naming(self.plan.data_name(shard), "cannot be read whole"):
                if num_rows != images.num_rows:
                    del self.statuses[shard]
                    raise Wrong(f"has {num_rows} rows, expected the {images.num_rows} images of the plan")
                if self.full:
                    check_data(self.objects, self.plan, shard, images, self.statuses[shard])
        if self.full:
            self.on_shard(len(self.images), self.plan.num_shards)

    def _check_keys_unique(self) -> None:
        """Check that no key is in two documents, by merging their sorted keys in flat memory."""

        def keys(name: str) -> Iterator[tuple[str, str]]:
            for _, images in self._shards(name):
                yield from ((key, name) for key in images["key"].to_pylist())

        # A revision has the keys that its shards had, which was compared.
        names = [name for name, document in self.plan.documents.items() if "revised" not in document]
        for (key, first), (other, second) in pairwise(heapq.merge(*map(keys, names))):
            if key == other:
                self.corrupt.add((second, f"plans {key!r}, which {first} planned before"))

    def _check_success(self) -> None:
        """Compare `_SUCCESS.json` with plan and files."""
        if _SUCCESS not in self.objects.sizes_bytes:
            self.unfinished = f"there is no {_SUCCESS}"
            return
        self.unfinished = f"{_SUCCESS} does not match"
        with self._naming(_SUCCESS, "does not have its fields"):
            success = self.objects.read_json(_SUCCESS)
            check_fields(success, SUCCESS)
            expect("format is", success["format"], FORMAT)
            expect("fingerprint is", success["fingerprint"], self.plan.fingerprint)
            names = list(self.plan.documents)
            plans = [
                AuditedPlan({name: self.plan.documents[name] for name in names[:end]}) for end in range(1, len(names))
            ]
            plan = next((plan for plan in plans if plan.sha256 == success["plan_sha256"]), self.plan)
            expect("plan_sha256 is", success["plan_sha256"], plan.sha256)
            self._check_success_shards(success, plan)
            # Not corrupt: this is how an output looks between an extension and its extraction.
            later = names[len(plan.documents) :]
            self.unfinished = f"{_SUCCESS} was written before {later[0]}" if later else ""

    def _check_success_shards(self, success: dict[str, Any], plan: AuditedPlan) -> None:
        lines, num_shards = success["shards"], plan.num_shards
        if [line["shard"] for line in lines] != list(range(num_shards)):
            raise Wrong(f"has {len(lines)} lines of shards, expected one for each of 0 to {num_shards - 1}, in order")
        total = Counter[str]()
        for shard, line in enumerate(lines):
            check_fields(line, SUCCESS_SHARD)
            outcomes = _outcomes(line, f"shard {shard}: ")
            total += outcomes
            expect(f"shard {shard}: images is", line["images"], self.images.get(shard, line["images"]))
            # A file of another revision than `_SUCCESS.json` speaks of was written after it.
            if shard in self.statuses and self.revisions[shard] == plan.planned_in[shard][-1]:
                name = self.plan.data_name(shard)
                expect(f"shard {shard}:", dict(outcomes), dict(self.statuses[shard]), f"but the footer of {name} says")
                with self._naming(name, ""):
                    expect(
                        "its size in bytes is", self.objects.sizes_bytes[name], line["bytes"], f"but {_SUCCESS} says"
                    )
        expect("totals are", dict(_outcomes(success, "")), dict(total), "but its shards add up to")

    def _report(self) -> Report:
        plan, sizes = self.plan, self.objects.sizes_bytes
        data = {plan.data_name(shard): shard for shard in range(plan.num_shards)}
        missing = [name for name in data if name not in sizes]
        known = {_SUCCESS, *plan.documents, *data, *(part["name"] for part in plan.parts)}
        others = [name for name in sizes if name not in known] if plan.documents else []
        leftovers = [name for name in others if _LEFTOVER.fullmatch(name)]
        unused = [name for name in others if _PART.fullmatch(name)]
        foreign = sorted(set(others) - set(leftovers) - set(unused))
        totals = sum(self.statuses.values(), Counter[str]())
        stale = [shard for shard, revision in self.revisions.items() if revision < plan.planned_in[shard][-1]]
        return Report(
            level="full" if self.full else "footers",
            planned=sum(part["images"] for part in plan.first_parts),
            ok=totals["ok"],
            rejected={reason: count for reason, count in sorted(totals.items()) if reason != "ok"},
            skipped=plan.skipped,
            missing=sum(self.images.get(data[name], 0) for name in missing),
            missing_files=tuple(missing),
            foreign=tuple(foreign),
            corrupt=tuple(sorted(self.corrupt)),
            unused_parts=len(unused),
            leftovers=len(leftovers),
            unfinished="; ".join(
                filter(
                    None,
                    [
                        f"shards without a file: {len(missing):,}" if missing else "",
                        f"shards to be done again: {len(stale):,}" if stale else "",
                        self.unfinished,
                    ],
                )
            ),
        )


def _outcomes(value: dict[str, Any], where: str) -> Counter[str]:
    """Rejected and ok images of a shard or of the totals, as one count."""
    outcomes = check_counts(value["rejected"]) + check_counts({"ok": value["ok"]}, frozenset({"ok"}))
    expect(f"{where}images is", value["images"], outcomes.total(), "but ok and rejected add up to")
    return outcomes
