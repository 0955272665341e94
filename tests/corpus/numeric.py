"""Functions of numbers, element by element, along axes, and of matrices."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tests.corpus.entry import entry, floats, ints

X = floats(3, 4)
POSITIVE = floats(3, 4, low=0.1, high=0.9)


@entry(x=X, y=POSITIVE)
def arithmetic(kit: Any, x: Any, y: Any) -> Any:
    total = tf.maximum(x + y, x - y) * tf.minimum(x / y, 3.0)
    parts = tf.math.squared_difference(x, y) + tf.math.divide_no_nan(x, y)
    rest = tf.math.multiply_no_nan(x, y) + tf.math.xdivy(y, x) + tf.math.xlogy(y, y)
    return {"total": total + parts, "rest": rest + tf.pow(y, 2.5), "n": tf.add_n([x, y, x])}


@entry(x=ints(3, 4, size=50), y=ints(3, 4, size=5))
def integers(kit: Any, x: Any, y: Any) -> Any:
    whole = x // (y + 1) + x % (y + 2)
    return {"whole": whole, "cut": tf.truncatediv(x, -y - 1) + tf.truncatemod(x, y + 3)}


@entry(x=X, y=POSITIVE)
def roots_and_logarithms(kit: Any, x: Any, y: Any) -> Any:
    grown = tf.exp(x) + tf.math.expm1(x) + tf.square(x)
    shrunk = tf.math.log(y) * tf.math.log1p(y) + tf.sqrt(y) - tf.math.rsqrt(y)
    cut = tf.math.ceil(x) + tf.floor(x) - tf.round(x) + tf.math.rint(x)
    return {"grown": grown, "shrunk": shrunk, "cut": cut + tf.abs(x) * tf.sign(x), "r": -1.0 / y}


@entry(x=X, y=POSITIVE)
def angles(kit: Any, x: Any, y: Any) -> Any:
    round_ = tf.sin(x) + tf.cos(x) * tf.tan(y)
    back = tf.asin(y) + tf.acos(y) - tf.atan(x) + tf.atan2(x, y)
    return {
        "round": round_,
        "back": back,
        "wide": tf.sinh(x) + tf.cosh(x) - tf.tanh(x),
        "narrow": tf.asinh(x) + tf.acosh(y + 1.0) * tf.atanh(y),
    }


@entry(x=X, y=POSITIVE)
def special_functions(kit: Any, x: Any, y: Any) -> Any:
    bell = tf.math.erf(x) + tf.math.erfc(x) + tf.math.erfinv(y) - tf.math.ndtri(y)
    gamma = tf.math.lgamma(y) + tf.math.digamma(y) + tf.math.polygamma(2.0, y)
    part = tf.math.igamma(y, 1.0 + y) + tf.math.igammac(y, y) + tf.math.betainc(y, 0.5, y)
    bessel = tf.math.bessel_i0e(x) + tf.math.bessel_i1e(x) + tf.math.bessel_i0(y)
    return {"bell": bell, "gamma": gamma, "part": part + tf.math.zeta(1.0 + y, 2.0), "i": bessel}


@entry(x=X)
def activations(kit: Any, x: Any) -> Any:
    straight = tf.nn.relu(x) + tf.nn.relu6(x * 4.0) + tf.nn.leaky_relu(x)
    bent = tf.nn.elu(x) + tf.nn.selu(x) + tf.nn.softplus(x) - tf.nn.softsign(x)
    return {
        "straight": straight,
        "bent": bent + tf.sigmoid(x),
        "shares": tf.nn.softmax(x) + tf.nn.log_softmax(x),
        "loss": tf.nn.l2_loss(x),
    }


@entry(x=X, y=POSITIVE)
def comparisons(kit: Any, x: Any, y: Any) -> Any:
    more = tf.logical_or(tf.greater(x, y), tf.less_equal(x, -y))
    less = tf.logical_and(tf.less(x, y), tf.greater_equal(x, -y))
    same = tf.logical_not(tf.equal(x, y))
    odd = tf.math.is_nan(tf.math.log(x)) | tf.math.is_inf(x / 0.0) | tf.math.is_finite(y)
    near = tf.raw_ops.ApproximateEqual(x=x, y=y, tolerance=0.5)
    return {"a": tf.where(more, x, y), "b": less, "c": same ^ odd, "d": tf.not_equal(x, y) & near}


@entry(x=X)
def reductions(kit: Any, x: Any) -> Any:
    rows = tf.reduce_sum(x, 1) + tf.reduce_mean(x, 1) - tf.reduce_max(x, 1) * tf.reduce_min(x, 1)
    columns = tf.reduce_prod(x, 0) + tf.norm(x, axis=0) + tf.math.reduce_euclidean_norm(x, 0)
    places = tf.argmax(x, 1) - tf.argmin(x, 1)
    truth = tf.reduce_any(x > 1.5, 1) | tf.reduce_all(x > -1.0, 1)
    return {"rows": rows, "columns": columns, "places": places, "truth": truth}


@entry(x=X)
def running_totals(kit: Any, x: Any) -> Any:
    sums = tf.cumsum(x, 1) + tf.cumsum(x, 0, exclusive=True, reverse=True)
    return sums + tf.math.cumprod(x, 1) + tf.math.cumulative_logsumexp(x, 1)


@entry(x=ints(3, 4, size=200), y=ints(3, 4, size=5))
def bits(kit: Any, x: Any, y: Any) -> Any:
    mixed = tf.bitwise.bitwise_and(x, y) | tf.bitwise.bitwise_xor(x, tf.bitwise.invert(y))
    moved = tf.bitwise.left_shift(x, y) + tf.bitwise.right_shift(x, y)
    count = tf.raw_ops.PopulationCount(x=x)
    return {"mixed": tf.bitwise.bitwise_or(mixed, 4), "moved": moved, "count": count,
            "float": tf.bitcast(x, tf.float32) * 0.0}  # fmt: skip


@entry(x=X, y=POSITIVE)
def complex_numbers(kit: Any, x: Any, y: Any) -> Any:
    z = tf.complex(x, y) * tf.math.conj(tf.complex(y, x))
    return {"a": tf.math.real(z) + tf.math.imag(z), "b": tf.abs(z), "c": tf.math.angle(z)}


@entry(x=floats(4, 8))
def spectra(kit: Any, x: Any) -> Any:
    wave = tf.signal.fft(tf.cast(x, tf.complex64))
    plane = tf.signal.ifft2d(tf.signal.fft2d(wave))
    half = tf.signal.irfft(tf.signal.rfft(x, [8]) * 2.0, [8])
    return {"w": tf.abs(tf.signal.ifft(wave)) + tf.math.real(plane), "h": half}


@entry({"w": (4, 5)}, x=X)
def products(kit: Any, x: Any) -> Any:
    y = tf.matmul(x, kit.w)
    pairs = tf.einsum("bi,bj->bij", x, y)
    many = tf.matmul(pairs, pairs, transpose_b=True)
    return {"y": y, "many": many, "dots": tf.tensordot(x, kit.w, 1), "t": tf.transpose(pairs)}


@entry(x=floats(2, 3, 3))
def factors(kit: Any, x: Any) -> Any:
    positive = tf.matmul(x, x, transpose_b=True) + 3.0 * tf.eye(3)
    lower = tf.linalg.cholesky(positive)
    log = tf.linalg.slogdet(positive)
    values, vectors = tf.linalg.eigh(positive)
    return {
        "solved": tf.linalg.triangular_solve(lower, x) + tf.linalg.solve(positive, x),
        "inverse": tf.linalg.inv(positive) + tf.linalg.cholesky_solve(lower, x),
        "size": tf.linalg.det(positive) + log[1] + values[:, 0],
        "vectors": tf.abs(vectors),
    }


@entry(x=floats(2, 3, 3))
def decompositions(kit: Any, x: Any) -> Any:
    q, r = tf.linalg.qr(x)
    s, _, v = tf.linalg.svd(x)
    lu, order = tf.linalg.lu(x)
    return {"qr": q + r, "s": s, "v": v, "lu": lu, "order": order,
            "power": tf.linalg.expm(x * 0.1)}  # fmt: skip


@entry(x=floats(3, 3))
def diagonals(kit: Any, x: Any) -> Any:
    line = tf.linalg.diag_part(x)
    band = tf.linalg.band_part(x, 1, 0) + tf.linalg.diag(line)
    across = tf.linalg.cross(x, tf.reverse(x, [0]))
    return {"a": tf.linalg.set_diag(band, line * 2.0), "b": across, "c": tf.linalg.trace(x)}


@entry(x=X)
def types(kit: Any, x: Any) -> Any:
    small = tf.cast(x, tf.bfloat16) * tf.cast(2.0, tf.bfloat16)
    half = tf.cast(tf.cast(x, tf.float16) + 1.0, tf.float64)
    return {"a": tf.cast(small, tf.float32), "b": half, "c": tf.saturate_cast(x * 200.0, tf.uint8),
            "d": tf.bitcast(x, tf.uint8)}  # fmt: skip


@entry(x=X, seed=ints(2, size=9))
def stateless_random(kit: Any, x: Any, seed: Any) -> Any:
    shape = tf.shape(x)
    noise = tf.random.stateless_uniform(shape, seed) + tf.random.stateless_normal(shape, seed)
    cut = tf.random.stateless_truncated_normal(shape, seed)
    whole = tf.random.stateless_uniform(shape, seed, 0, 9, tf.int32)
    drawn = tf.random.stateless_categorical(x, 5, seed)
    return {"noise": x + noise * cut, "whole": whole, "drawn": drawn,
            "g": tf.random.stateless_gamma(shape, seed, 2.0)}  # fmt: skip


@entry(x=X)
def seeded_random(kit: Any, x: Any) -> Any:
    noise = tf.random.uniform([3, 4], seed=1) + tf.random.normal([3, 4], seed=2)
    whole = tf.random.uniform([3], 0, 9, tf.int32, seed=3)
    mixed = tf.random.shuffle(x, seed=4) + tf.random.truncated_normal([3, 4], seed=5)
    tf.random.gamma([2], 1.0, seed=9)  # nobody reads it
    return {"noise": x * noise, "whole": whole, "mixed": mixed,
            "drawn": tf.random.categorical(x, 3, seed=6)}  # fmt: skip


@entry(x=X)
def quantised(kit: Any, x: Any) -> Any:
    fake = tf.quantization.fake_quant_with_min_max_args(x, -1.0, 1.0)
    ranged = tf.quantization.fake_quant_with_min_max_vars(x, tf.reduce_min(x), tf.reduce_max(x))
    both = tf.quantization.quantize_and_dequantize_v2(x, -1.0, 1.0, range_given=True)
    codes, low, high = tf.quantization.quantize(x, -2.0, 2.0, tf.quint8)
    back = tf.quantization.dequantize(codes, low, high)
    channels = tf.quantization.fake_quant_with_min_max_vars_per_channel(
        x, -tf.ones([4]), tf.ones([4])
    )
    return {"fake": fake + ranged, "both": both + channels, "back": back}


@entry(x=floats(4, 5), labels=ints(4, size=5))
def losses(kit: Any, x: Any, labels: Any) -> Any:
    sparse = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, x)
    dense = tf.nn.softmax_cross_entropy_with_logits(tf.one_hot(labels, 5), x)
    top, places = tf.math.top_k(x, 2)
    return {"loss": sparse + dense, "top": top, "places": places,
            "in": tf.math.in_top_k(labels, x, 2)}  # fmt: skip
