"""Account for every shard in `_SUCCESS.json`, and check whether an output is finished."""

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import TypedDict

from bottleneck.dataset.footer import read_footer
from bottleneck.dataset.plan import FORMAT, Plan, json_bytes
from bottleneck.dataset.write import Receipt
from bottleneck.errors import IncompleteError
from bottleneck.storage.store import Entry, ObjectGoneError, open_store
from bottleneck.text import counted


class ShardOutcome(TypedDict):
    """A line of `_SUCCESS.json`."""

    shard: int
    images: int
    ok: int
    rejected: dict[str, int]
    bytes: int


class Success(TypedDict):
    """The content of `_SUCCESS.json`."""

    format: int
    fingerprint: str
    plan_sha256: str
    images: int
    ok: int
    rejected: dict[str, int]
    shards: list[ShardOutcome]
    finished: str


SUCCESS = "_SUCCESS.json"


def finish(
    plan: Plan,
    receipts: dict[int, Receipt] | None = None,
    run_id: str = "",
    done: dict[int, int] | None = None,
) -> Success:
    """Account for every shard and write `_SUCCESS.json`.

    Args:
        receipts: this run's, by shard. The footers of all other shards are read, and those of reprocessed ones.
        run_id: this run's. A shard whose footer has it, but whose receipt was lost with its worker, is added to
            `receipts`, so that the run counts what it did.
        done: `plan.committed()` as this run found it at its start. Default: `data/` is listed.

    Returns:
        The content of `_SUCCESS.json`.

    Raises:
        IncompleteError: if shards are missing.
    """
    store = open_store(plan.output)
    ours = {shard: receipt for shard, receipt in (receipts or {}).items() if receipt.created}
    committed = plan.committed() if done is None else done

    def account(shard: int) -> Receipt | None:
        """Return the shard's receipt, or None if its file is missing or of an earlier revision."""
        name = plan.data_name(shard)
        revised = plan.revised.get(shard)
        if shard in ours and not revised:  # another run may have replaced a reprocessed one
            return ours[shard]
        if shard in committed:
            listed: Entry | None = Entry(name, committed[shard], "")
        else:  # another run's, if this one did not list `data/` a moment ago
            listed = None if done is None else store.stat(name)
        if listed is None:
            return None
        entry, footer = read_footer(store, listed)
        if revised and footer.get("revision", 0) < revised.revision:
            return None
        return Receipt(shard, footer["statuses"], entry.size, created=footer.get("run_id") == run_id)

    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(account, range(plan.num_shards)))
    accounts = [receipt for receipt in found if receipt is not None]
    if missing := [shard for shard, receipt in enumerate(found) if receipt is None]:
        raise IncompleteError(
            f"{plan.output} is not finished: {len(missing):,} of {counted(plan.num_shards, 'shard')} left to do, the "
            f"first of them {missing[0]}. Run the same command again: it does only that."
        )
    if receipts is not None:
        receipts.update((one.shard, one) for one in accounts if one.created)
    totals = sum((Counter(receipt.statuses) for receipt in accounts), Counter())
    document: Success = {
        "format": FORMAT,
        "fingerprint": plan.holds.fingerprint,
        "plan_sha256": plan.sha256,
        "images": plan.num_images,
        "ok": totals.pop("ok", 0),
        "rejected": dict(sorted(totals.items())),
        "shards": [
            {"shard": one.shard, "images": one.images, "ok": one.ok, "rejected": one.rejected, "bytes": one.bytes}
            for one in accounts
        ],
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    store.replace(SUCCESS, json_bytes(document))
    return document


def finished(plan: Plan, committed: dict[int, int] | None = None) -> Success | None:
    """Read `_SUCCESS.json` if it is of this plan and every data file has the recorded size; else None.

    Args:
        committed: `plan.committed()`, where that is known already.
    """
    store = open_store(plan.output)
    try:
        document: Success = json.loads(store.read(SUCCESS))
        sizes = {line["shard"]: line["bytes"] for line in document["shards"]}
        if document["plan_sha256"] != plan.sha256:
            return None
        return document if sizes == (plan.committed() if committed is None else committed) else None
    except (ObjectGoneError, ValueError, KeyError, TypeError, RecursionError):
        return None
