import torch


def descent(logp, n, floor, sparsity, start, rate, steps, price=torch.mean, clamp=True, out=lambda u, floor: u):
    u, best, found = torch.full((n,), start, requires_grad=True), float("inf"), None
    for _ in range(steps):
        loss = sparsity * price(u) - logp(floor * (1 - u))
        if loss < best:
            best, found = loss.item(), u.detach().clone()
        (slope,) = torch.autograd.grad(loss, u)
        with torch.no_grad():
            u -= rate * slope
            if clamp:
                u.clamp_(0, 1)
    return out(found, floor)


def sweep(nats_lost, nats_cut):
    return next(-c for c in range(1, 60) if nats_lost(-c) >= 0.9 * nats_cut)


WRONG = {
    "mask_by_hand": [
        {"loss": 4.8, "shut_from": 5.2, "saliency": 0.25, "slope": -0.098},  # sum, not mean
        {"loss": 1.8, "shut_from": 5.2, "saliency": 0.25, "slope": -0.098},
        {"loss": 1.8, "shut_from": 20.8, "saliency": 0.75, "slope": -0.098},  # sign as printed
        {"loss": 1.8, "shut_from": 20.8, "saliency": 0.25, "slope": -0.1},
    ],
    "mask_descent": [
        lambda *given: descent(*given, price=torch.sum),
        lambda *given: descent(*given, clamp=False),
        lambda *given: descent(*given, out=lambda u, floor: floor * (1 - u)),
    ],
    "floor_without_truth": [
        lambda nats_lost, nats_cut: -0.4,  # the published one
        lambda nats_lost, nats_cut: -12.0,  # abacus's
        sweep,  # without a thought for models that do not use their reasoning
    ],
}
