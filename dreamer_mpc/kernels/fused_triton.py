"""Triton kernels of `fused.py`: the operations between the large products, each in one pass over memory."""

import torch
import triton
import triton.language as tl
from torch import Tensor

PROGRAMS = 528  # four per multiprocessor of an H200
ELEMENTS = 4096  # of a block

NONE, RELU, ELU = 0, 1, 2  # activations
SAME, TO_BLOCKS, FROM_BLOCKS = 0, 1, 2  # layouts of the output


@triton.jit
def _target(
    at, cols, rows, LAYOUT: tl.constexpr, C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, SIDE: tl.constexpr,
    CROP: tl.constexpr,
):  # fmt: skip
    """The position of element (row, column) of [M * H * W, C] in the output, and whether it has one."""
    mask = (at < rows)[:, None] & (cols < C)[None, :]
    if LAYOUT == 0:
        where = at[:, None] * C + cols[None, :]
    else:
        m, i, j = at // (H * W), at // W % H, at % W
        if LAYOUT == 1:
            block = (m * (H // SIDE) + i // SIDE) * (W // SIDE) + j // SIDE
            pixel = block * (SIDE * SIDE) + i % SIDE * SIDE + j % SIDE
            where = pixel[:, None] * C + cols[None, :]
        else:
            c: tl.constexpr = C // (SIDE * SIDE)
            p, q, channel = cols // (SIDE * c), cols // c % SIDE, cols % c
            row = i[:, None] * SIDE + p[None, :]
            column = j[:, None] * SIDE + q[None, :]
            where = ((m[:, None] * CROP + row) * CROP + column) * c + channel[None, :]
            mask = mask & (row < CROP) & (column < CROP)
    return where, mask


@triton.jit
def _member(member, rows, C: tl.constexpr, STRIDE: tl.constexpr):
    """The start of a member of a product [K, rows, C] whose rows are STRIDE apart: C, or K * C if side by side."""
    if STRIDE == C:
        return member * rows * C
    else:
        return member * C


@triton.jit
def _act(v, ACT: tl.constexpr):
    if ACT == 1:
        v = tl.where(v > 0, v, 0.0)
    elif ACT == 2:
        v = tl.where(v > 0, v, tl.exp(v) - 1)
    return v


@triton.jit
def _act_backward(v, out, ACT: tl.constexpr):
    """The gradient v of the activation `out`, taken to its input."""
    if ACT == 1:
        v = tl.where(out > 0, v, 0.0)
    elif ACT == 2:
        v = tl.where(out > 0, v, v * (out + 1))
    return v


@triton.jit
def _bias_act(
    y, bias, out, rows, ACT: tl.constexpr, C: tl.constexpr, CP: tl.constexpr, BR: tl.constexpr, STRIDE: tl.constexpr,
    LAYOUT: tl.constexpr, H: tl.constexpr, W: tl.constexpr, SIDE: tl.constexpr, CROP: tl.constexpr,
):  # fmt: skip
    cols, member = tl.arange(0, CP), tl.program_id(1).to(tl.int64)
    b = tl.load(bias + member * C + cols, mask=cols < C, other=0.0).to(tl.float32)
    y += _member(member, rows, C, STRIDE)
    out += member * rows * C
    for block in range(tl.program_id(0), tl.cdiv(rows, BR), tl.num_programs(0)):
        at = (block * BR + tl.arange(0, BR)).to(tl.int64)
        inside = (at < rows)[:, None] & (cols < C)[None, :]
        v = tl.load(y + at[:, None] * STRIDE + cols[None, :], mask=inside, other=0.0).to(tl.float32) + b[None, :]
        where, mask = _target(at, cols, rows, LAYOUT, C, H, W, SIDE, CROP)
        tl.store(out + where, _act(v, ACT), mask=mask)


@triton.jit
def _bias_act_backward(
    g, out, dy, sums, rows, ACT: tl.constexpr, C: tl.constexpr, CP: tl.constexpr, BR: tl.constexpr,
    STRIDE: tl.constexpr, LAYOUT: tl.constexpr, H: tl.constexpr, W: tl.constexpr, SIDE: tl.constexpr,
    CROP: tl.constexpr,
):  # fmt: skip
    cols, member = tl.arange(0, CP), tl.program_id(1).to(tl.int64)
    g += member * rows * C
    out += member * rows * C
    dy += _member(member, rows, C, STRIDE)
    total = tl.zeros([BR, CP], tl.float32)
    for block in range(tl.program_id(0), tl.cdiv(rows, BR), tl.num_programs(0)):
        at = (block * BR + tl.arange(0, BR)).to(tl.int64)
        where, mask = _target(at, cols, rows, LAYOUT, C, H, W, SIDE, CROP)
        v = tl.load(g + where, mask=mask, other=0.0).to(tl.float32)
        if ACT > 0:
            v = _act_backward(v, tl.load(out + where, mask=mask, other=0.0).to(tl.float32), ACT)
        if ACT > 0 or LAYOUT > 0 or STRIDE != C:
            inside = (at < rows)[:, None] & (cols < C)[None, :]
            tl.store(dy + at[:, None] * STRIDE + cols[None, :], v, mask=inside)
        total += v
    sums += (member * tl.num_programs(0) + tl.program_id(0)) * C
    tl.store(sums + cols, tl.sum(total, axis=0), mask=cols < C)


def _shape(channels: int, rows: int, members: int) -> tuple[tuple[int, int], dict[str, int]]:
    padded = triton.next_power_of_2(channels)
    block = max(1, ELEMENTS // padded)
    return (min(PROGRAMS, triton.cdiv(rows, block)), members), {"C": channels, "CP": padded, "BR": block}


def _geometry(layout: int, height: int, width: int, side: int, crop: int) -> dict[str, int]:
    return {"LAYOUT": layout, "H": height, "W": width, "SIDE": side, "CROP": crop}


def bias_act(y: Tensor, bias: Tensor, out: Tensor, act: int, geometry: tuple[int, ...]) -> None:
    """`out` becomes the activation of y [K, rows, C] + bias [K, C], in its own layout; it may be a contiguous y."""
    members, rows, channels = y.shape
    grid, shape = _shape(channels, rows, members)
    _bias_act[grid](y, bias, out, rows, ACT=act, STRIDE=y.stride(1), **shape, **_geometry(*geometry))


def bias_act_backward(
    g: Tensor, out: Tensor, shape: tuple[int, int, int], beside: bool, act: int, geometry: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Gradients of y [K, rows, C] and of the bias [K, C]; g and out lie in the layout of the output.

    The first is laid out as y was: a row of all members `beside` each other, or one member after the other.
    """
    members, rows, channels = shape
    grid, blocks = _shape(channels, rows, members)
    untouched = act == NONE and geometry[0] == SAME and not beside
    dy = g if untouched else _product_like(g, shape, beside)
    sums = g.new_empty(members, grid[0], channels, dtype=torch.float32)
    settings = {"ACT": act, "STRIDE": dy.stride(1), **blocks, **_geometry(*geometry)}
    _bias_act_backward[grid](g, out, dy, sums, rows, **settings)
    return dy, _sum(sums)


def _product_like(x: Tensor, shape: tuple[int, int, int], beside: bool) -> Tensor:
    members, rows, channels = shape
    return x.new_empty(rows, members, channels).transpose(0, 1) if beside else x.new_empty(shape)


@triton.jit
def _column_sums(x, out, count, C: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr):
    cols, member = tl.program_id(0) * BC + tl.arange(0, BC), tl.program_id(1).to(tl.int64)
    x += member * count * C
    total = tl.zeros([BR, BC], tl.float32)
    for start in range(0, count, BR):
        at = start + tl.arange(0, BR)
        inside = (at < count)[:, None] & (cols < C)[None, :]
        total += tl.load(x + at[:, None] * C + cols[None, :], mask=inside, other=0.0)
    tl.store(out + member * C + cols, tl.sum(total, axis=0), mask=cols < C)


def _sum(x: Tensor) -> Tensor:
    """Sums of what each program found, [K, programs, C] -> [K, C]: few numbers, so the blocks of columns are narrow."""
    members, count, channels = x.shape
    out, width = x.new_empty(members, channels), 8
    _column_sums[(triton.cdiv(channels, width), members)](x, out, count, C=channels, BR=256, BC=width)
    return out


@triton.jit
def _bias_act_dot(
    y, bias, weight, offset, out, value, rows, ACT: tl.constexpr, C: tl.constexpr, CP: tl.constexpr,
    BR: tl.constexpr, STRIDE: tl.constexpr,
):  # fmt: skip
    cols, member = tl.arange(0, CP), tl.program_id(1).to(tl.int64)
    b = tl.load(bias + member * C + cols, mask=cols < C, other=0.0).to(tl.float32)
    w = tl.load(weight + member * C + cols, mask=cols < C, other=0.0).to(tl.float32)
    add = tl.load(offset + member).to(tl.float32)
    y += _member(member, rows, C, STRIDE)
    out += member * rows * C
    value += member * rows
    for block in range(tl.program_id(0), tl.cdiv(rows, BR), tl.num_programs(0)):
        at = (block * BR + tl.arange(0, BR)).to(tl.int64)
        inside = (at < rows)[:, None] & (cols < C)[None, :]
        v = tl.load(y + at[:, None] * STRIDE + cols[None, :], mask=inside, other=0.0).to(tl.float32) + b[None, :]
        v = _act(v, ACT).to(out.dtype.element_ty)
        tl.store(out + at[:, None] * C + cols[None, :], v, mask=inside)
        tl.store(value + at, tl.sum(v.to(tl.float32) * w[None, :], axis=1) + add, mask=at < rows)


@triton.jit
def _bias_act_dot_backward(
    g, weight, out, dy, sums, rows, ACT: tl.constexpr, C: tl.constexpr, CP: tl.constexpr, BR: tl.constexpr,
    STRIDE: tl.constexpr,
):  # fmt: skip
    cols, member = tl.arange(0, CP), tl.program_id(1).to(tl.int64)
    w = tl.load(weight + member * C + cols, mask=cols < C, other=0.0).to(tl.float32)
    g += member * rows
    out += member * rows * C
    dy += _member(member, rows, C, STRIDE)
    of_bias, of_weight = tl.zeros([BR, CP], tl.float32), tl.zeros([BR, CP], tl.float32)
    for block in range(tl.program_id(0), tl.cdiv(rows, BR), tl.num_programs(0)):
        at = (block * BR + tl.arange(0, BR)).to(tl.int64)
        inside = (at < rows)[:, None] & (cols < C)[None, :]
        dv = tl.load(g + at, mask=at < rows, other=0.0).to(tl.float32)[:, None]
        o = tl.load(out + at[:, None] * C + cols[None, :], mask=inside, other=0.0).to(tl.float32)
        v = _act_backward(dv * w[None, :], o, ACT)
        tl.store(dy + at[:, None] * STRIDE + cols[None, :], v, mask=inside)
        of_bias += v
        of_weight += dv * o
    sums += (member * tl.num_programs(0) + tl.program_id(0)) * 2 * C
    tl.store(sums + cols, tl.sum(of_bias, axis=0), mask=cols < C)
    tl.store(sums + C + cols, tl.sum(of_weight, axis=0), mask=cols < C)


def bias_act_dot(y: Tensor, bias: Tensor, weight: Tensor, offset: Tensor, act: int) -> tuple[Tensor, Tensor]:
    """The activation of y [K, rows, C] + bias [K, C], and its products with weight [K, C] plus offset [K], fp32."""
    members, rows, channels = y.shape
    grid, shape = _shape(channels, rows, members)
    out = y if y.is_contiguous() else y.new_empty(y.shape)
    value = y.new_empty(members, rows, dtype=torch.float32)
    _bias_act_dot[grid](y, bias, weight, offset, out, value, rows, ACT=act, STRIDE=y.stride(1), **shape)
    return out, value


def bias_act_dot_backward(
    g: Tensor, weight: Tensor, out: Tensor, beside: bool, act: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of y, of the bias and of the weight; y's is laid out as in `bias_act_backward`."""
    members, rows, channels = out.shape
    grid, blocks = _shape(channels, rows, members)
    dy = _product_like(out, out.shape, beside)
    sums = g.new_empty(members, grid[0], 2 * channels, dtype=torch.float32)
    _bias_act_dot_backward[grid](g, weight, out, dy, sums, rows, ACT=act, STRIDE=dy.stride(1), **blocks)
    return dy, *_sum(sums).unflatten(1, (2, channels)).unbind(1)


@triton.jit
def _patch_starts(at, BLOCKS: tl.constexpr, H: tl.constexpr, I: tl.constexpr):  # noqa: E741
    """Where the patches `at` begin in square images [M, H, H, I]: 2 apart, in blocks of 2x2 patches."""
    # A remainder of a remainder (at % 4 % 2) would pass for a multiple of 2: Triton 3.7 then reads 16 bytes at once.
    block, row_in_block, column_in_block = at // 4, at // 2 % 2, at % 2
    image, row, column = (block // (BLOCKS * BLOCKS)).to(tl.int64), block // BLOCKS % BLOCKS, block % BLOCKS
    return image * H * H * I + ((4 * row + 2 * row_in_block) * H + 4 * column + 2 * column_in_block) * I


@triton.jit
def _image_layer(
    image, weight, bias, out, rows, BLOCKS: tl.constexpr, H: tl.constexpr, I: tl.constexpr,  # noqa: E741
    C: tl.constexpr, CP: tl.constexpr, BR: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    cols, ks = tl.arange(0, CP), tl.arange(0, 64)
    real = cols < C
    w = tl.load(weight + cols[None, :] * 64 + ks[:, None], mask=real[None, :], other=0.0)
    at = tl.program_id(0) * BR + tl.arange(0, BR)
    live = at < rows
    places = image + _patch_starts(at, BLOCKS, H, I)[:, None] + (ks // 16 * H * I + ks % 16)[None, :]
    patch = tl.load(places, mask=live[:, None] & (ks % 16 < 4 * I)[None, :], other=0.0).to(w.dtype)
    v = tl.dot(patch, w, input_precision=PRECISION) + tl.load(bias + cols, mask=real, other=0.0)[None, :]
    tl.store(out + at.to(tl.int64)[:, None] * C + cols[None, :], _act(v, 1), mask=live[:, None] & real[None, :])


@triton.jit
def _image_layer_backward(
    g, out, image, sums, rows, BLOCKS: tl.constexpr, H: tl.constexpr, I: tl.constexpr,  # noqa: E741
    C: tl.constexpr, CP: tl.constexpr, BR: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    cols, ks = tl.arange(0, CP), tl.arange(0, 64)
    real, inside = cols < C, (ks % 16 < 4 * I)[:, None]
    of_weight, of_bias = tl.zeros([64, CP], tl.float32), tl.zeros([BR, CP], tl.float32)
    for block in range(tl.program_id(0), tl.cdiv(rows, BR), tl.num_programs(0)):
        at = block * BR + tl.arange(0, BR)
        live = at < rows
        where, mask = at.to(tl.int64)[:, None] * C + cols[None, :], live[:, None] & real[None, :]
        o = tl.load(out + where, mask=mask, other=0.0)
        v = _act_backward(tl.load(g + where, mask=mask, other=0.0), o, 1)
        places = image + _patch_starts(at, BLOCKS, H, I)[None, :] + (ks // 16 * H * I + ks % 16)[:, None]
        patch = tl.load(places, mask=inside & live[None, :], other=0.0).to(o.dtype)
        of_weight = tl.dot(patch, v.to(o.dtype), of_weight, input_precision=PRECISION)
        of_bias += v.to(tl.float32)
    sums += tl.program_id(0) * 65 * C
    tl.store(sums + ks[:, None] * C + cols[None, :], of_weight, mask=real[None, :])
    tl.store(sums + 64 * C + cols, tl.sum(of_bias, axis=0), mask=real)


def _image_sizes(image: Tensor, channels: int) -> dict[str, int | str]:
    height, inputs = image.shape[2:]
    sizes = {"BLOCKS": (height - 4) // 4, "H": height, "I": inputs, "C": channels, "BR": 128}
    precision = "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"
    return sizes | {"CP": max(16, triton.next_power_of_2(channels)), "PRECISION": precision}


def image_layer(image: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """See `fused.image_layer`; in the precision of the weight."""
    sizes = _image_sizes(image, len(weight))
    blocks = sizes["BLOCKS"]
    out = weight.new_empty(len(image), blocks, blocks, 4 * len(weight))
    rows = 4 * len(image) * blocks * blocks
    _image_layer[(triton.cdiv(rows, sizes["BR"]),)](image, weight, bias, out, rows, **sizes)
    return out


def image_layer_backward(g: Tensor, out: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of weight and bias; there is none of the image."""
    channels = out.shape[-1] // 4
    sizes, rows = _image_sizes(image, channels), out.numel() // channels
    programs = min(PROGRAMS, triton.cdiv(rows, sizes["BR"]))
    sums = g.new_empty(1, programs, 65 * channels, dtype=torch.float32)
    _image_layer_backward[(programs,)](g, out, image, sums, rows, **sizes)
    of_weight, of_bias = _sum(sums).view(65, channels).split([64, 1])
    return of_weight.t(), of_bias[0]


@triton.jit
def _dequantize(image, noise, count, SHIFT: tl.constexpr, LEVELS: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < count
    level = (tl.load(image + at, mask=mask, other=0).to(tl.int32) >> SHIFT).to(tl.float32)
    tl.store(noise + at, (level + tl.load(noise + at, mask=mask, other=0.0)) / LEVELS - 0.5, mask=mask)


def dequantize(image: Tensor, noise: Tensor, bits: int) -> None:
    """`noise` becomes (noise + level) / levels - 0.5, the levels being the first `bits` bits of `image`."""
    block = 2048
    count = image.numel()
    _dequantize[(triton.cdiv(count, block),)](image, noise, count, SHIFT=8 - bits, LEVELS=2**bits, BLOCK=block)
