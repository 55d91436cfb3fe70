# Exercise 1: how long until a share 1/e is left
def half_life(d):
    return 1 / (1 - d)

# Exercise 1: the sign of the logarithm
def half_life(d):
    return math.log(.5) / -math.log(d)

# Exercise 2: the parts are summed, not averaged
def in_parts(model, objective, x, draw, parts):
    size = len(x) // parts
    for i in range(parts):
        some = slice(i*size, (i + 1)*size)
        objective(model, x[some], draw=draw.part(some)).loss.mean().backward()

# Exercise 2: every part gets the first part's draw
def in_parts(model, objective, x, draw, parts):
    size = len(x) // parts
    for i in range(parts):
        (objective(model, x[i*size:(i + 1)*size], draw=draw.part(slice(0, size))).loss.mean() / parts).backward()

# Exercise 2: only the last part is differentiated
def in_parts(model, objective, x, draw, parts):
    size = len(x) // parts
    for i in range(parts):
        some = slice(i*size, (i + 1)*size)
        loss = objective(model, x[some], draw=draw.part(some)).loss.mean() / parts
    loss.backward()

# Exercise 3: the first step has a rate of zero
def rate(n, steps, warmup, top):
    rise = min(1., n / warmup) if warmup else 1.
    return top * rise * (1 + math.cos(math.pi * n / steps)) / 2

# Exercise 3: the cosine begins after the warm-up
def rate(n, steps, warmup, top):
    if n < warmup: return top * (n + 1) / warmup
    return top * (1 + math.cos(math.pi * (n - warmup) / (steps - warmup))) / 2

# Exercise 3: a whole period of the cosine
def rate(n, steps, warmup, top):
    rise = min(1., (n + 1) / warmup) if warmup else 1.
    return top * rise * (1 + math.cos(2 * math.pi * n / steps)) / 2

# Exercise 4: A and B change places
verdict = dict(A="bad data", B="too high a rate", C="fine")

# Exercise 4: a loss that falls is taken for a good sign
verdict = dict(A="fine", B="bad data", C="fine")
