def plan(**changed):
    right = dict(arms=["outcome", "drop or sufficiency"], seeds=4, steps=200, prompts=8, rollouts=8)
    return right | dict(gpus=1, lora=16, at_once=8) | changed


def counted(shape, rows, columns, *, key_heads=None, inner=3, products=4, logits=True, looked=None, width=None):
    s = shape
    wide = s.heads * s.head_dim
    narrow = (key_heads or s.key_heads) * s.head_dim
    weights = s.hidden * (2 * wide + 2 * narrow) + inner * s.hidden * s.inner
    attention = products * rows * (columns if looked is None else looked) * (width or wide)
    return s.layers * (2 * rows * weights + attention) + logits * 2 * rows * s.hidden * s.vocabulary


def every_head_has_keys(shape, rows, columns):
    return counted(shape, rows, columns, key_heads=shape.heads)


def one_product(shape, rows, columns):
    return counted(shape, rows, columns, products=2)


def rows_see_rows(shape, rows, columns):
    return counted(shape, rows, columns, looked=rows)


def without_logits(shape, rows, columns):
    return counted(shape, rows, columns, logits=False)


def hidden_is_the_width(shape, rows, columns):
    return counted(shape, rows, columns, width=shape.hidden)


def two_p(shape, rows, columns):
    embedding = 2 * rows * shape.hidden * shape.vocabulary
    return counted(shape, rows, columns) + (0 if shape.tied else embedding)


WRONG = {
    "kept_of_a_trace": [
        dict(cache=4, maps=256, recorded=0.390625),
        dict(cache=0.5, maps=256, recorded=0.390625),
        dict(cache=1.0737, maps=256, recorded=0.390625),
        dict(cache=1, maps=0.25, recorded=0.390625),
        dict(cache=1, maps=256, recorded=2.5),
    ],
    "flops_of_rows": [
        every_head_has_keys,
        one_product,
        rows_see_rows,
        without_logits,
        hidden_is_the_width,
        two_p,
    ],
    "affordable_comparison": [
        plan(arms=["drop or sufficiency", "mask, scope answer"]),
        plan(seeds=3),
        plan(rollouts=4, prompts=16),
        plan(lora=0),
        plan(arms=["outcome", "mask as published"]),
        plan(gpus=3),
    ],
}
