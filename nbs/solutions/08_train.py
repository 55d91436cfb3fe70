"Solutions of chapter 08"

# Exercise 1
def half_life(d):
    return math.log(.5) / math.log(d)                        # d^n = 1/2

# Exercise 2
def in_parts(model, objective, x, draw, parts):
    size = len(x) // parts
    for i in range(parts):
        some = slice(i*size, (i + 1)*size)
        (objective(model, x[some], draw=draw.part(some)).loss.mean() / parts).backward()

# Exercise 3
def rate(n, steps, warmup, top):
    rise = min(1., (n + 1) / warmup) if warmup else 1.
    return top * rise * (1 + math.cos(math.pi * n / steps)) / 2

# Exercise 4
verdict = dict(A="too high a rate", B="bad data", C="fine")
