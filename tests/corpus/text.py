"""Functions of strings and of tables."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tests.corpus.entry import entry, floats, ints, texts

WORDS = texts(4)


@entry(k=WORDS)
def words(kit: Any, k: Any) -> Any:
    low = tf.strings.lower(k)
    wide = tf.strings.join([tf.strings.upper(k), low], "-")
    cut = tf.strings.substr(tf.strings.strip(wide), 0, 2)
    same = tf.strings.regex_full_match(low, ".*cat")
    changed = tf.strings.regex_replace(low, "cat", "fox")
    return {"wide": wide, "cut": cut, "n": tf.strings.length(changed), "same": same}


@entry(k=WORDS)
def parts_of_text(kit: Any, k: Any) -> Any:
    pieces = tf.strings.split(k)
    pairs = tf.strings.ngrams(tf.stack([k, k], 1), 2, separator="+")
    return {"values": tf.strings.upper(pieces.values), "n": pieces.row_lengths(), "pairs": pairs,
            "all": tf.strings.reduce_join(k, separator=",")}  # fmt: skip


@entry(k=WORDS)
def hashes(kit: Any, k: Any) -> Any:
    fast = tf.strings.to_hash_bucket_fast(k, 10)
    strong = tf.strings.to_hash_bucket_strong(k, 10, [1, 2])
    return {"fast": fast + strong + tf.strings.to_hash_bucket(k, 7),
            "print": tf.fingerprint(tf.reshape(k, [-1, 1]))}  # fmt: skip


@entry(k=WORDS)
def characters(kit: Any, k: Any) -> Any:
    codes = tf.strings.unicode_decode(k, "UTF-8")
    back = tf.strings.unicode_encode(codes + 1, "UTF-8")
    other = tf.strings.unicode_transcode(k, "UTF-8", "UTF-16-BE")
    return {"back": back, "other": tf.strings.length(other), "script": tf.strings.unicode_script(
            codes.values)}  # fmt: skip


@entry(x=floats(3, 4), n=ints(3, size=90))
def numbers_as_text(kit: Any, x: Any, n: Any) -> Any:
    shown = tf.strings.as_string(n)
    back = tf.strings.to_number(shown, tf.int32) + 1
    code = tf.io.encode_base64(shown)
    packed = tf.io.serialize_tensor(x)
    return {
        "back": back,
        "code": tf.io.decode_base64(code),
        "x": tf.ensure_shape(tf.io.parse_tensor(packed, tf.float32), [3, 4]) * 2.0,
        "text": tf.strings.format("{} and {}", [n, back]),
        "sum": tf.strings.unsorted_segment_join(shown, [0, 1, 0], 2),
    }


@entry(n=ints(3, size=90))
def records(kit: Any, n: Any) -> Any:
    lines = tf.strings.join([tf.strings.as_string(n), "2.5", "x"], ",")
    whole, real, text = tf.io.decode_csv(lines, [0, 0.0, ""])
    raw = tf.io.decode_raw(tf.strings.substr(tf.strings.join([text, "abcd"]), 0, 4), tf.uint8)
    return {"y": tf.cast(whole, tf.float32) * real, "raw": raw}


@entry(table=True, k=WORDS)
def table_lookups(kit: Any, k: Any) -> Any:
    found = kit.table.lookup(tf.strings.lower(k))
    return {"y": found * 2.0, "n": kit.table.size()}


@entry({"w": (3, 2)}, table=True, k=WORDS)
def table_and_embedding(kit: Any, k: Any) -> Any:
    row = tf.cast(tf.clip_by_value(kit.table.lookup(k) - 1.5, 0.0, 2.0), tf.int32)
    return tf.nn.embedding_lookup(kit.w, row) * tf.cast(row, tf.float32)[:, None]
