# Exercise 1: eta of straight lines
answer = 1.4/2.4

# Exercise 1: forgets the factor 2/pi
answer = math.atan(1.4)

# Exercise 1: gives eta itself
answer = 1.4

# Exercise 2: forgets to turn eta into a time
def log_grid(steps, T, eps):
    return torch.logspace(math.log10(T/(1 - T)), math.log10(eps/(1 - eps)), steps + 1, dtype=torch.float64)

# Exercise 2: even in log t instead of log eta
def log_grid(steps, T, eps):
    return torch.exp(torch.linspace(math.log(T), math.log(eps), steps + 1, dtype=torch.float64))

# Exercise 2: from data to noise
def log_grid(steps, T, eps):
    eta = torch.exp(torch.linspace(math.log(eps/(1 - eps)), math.log(T/(1 - T)), steps + 1, dtype=torch.float64))
    return eta / (1 + eta)

# Exercise 2: one time too few
def log_grid(steps, T, eps):
    eta = torch.exp(torch.linspace(math.log(T/(1 - T)), math.log(eps/(1 - eps)), steps, dtype=torch.float64))
    return eta / (1 + eta)

# Exercise 3: treats the first jump as a restart
def left_over(wrong, starts, p):
    for t in starts: wrong *= (1 - t)*p / math.hypot((1 - t)*p, t*.5)
    return wrong

# Exercise 3: only the noise dilutes, the jump is forgotten
def left_over(wrong, starts, p):
    for t in starts[1:]: wrong *= 1 - t
    return wrong

# Exercise 3: a pushforward, whose stops cancel
def left_over(wrong, starts, p):
    t = starts[0]
    return wrong * p / math.hypot((1 - t)*p, t*.5)

# Exercise 4: adds the noise without shrinking the sample
def push_and_restart(model, x, times, back, noise):
    for t, s in zip(times, times[1:]): x = model(x, t, s)
    return model(x + back*noise, back, times[-1])

# Exercise 4: restarts at every stop
def push_and_restart(model, x, times, back, noise):
    *starts, end = times
    for t in starts: x = model(model.flow.interpolate(x, noise, back), t, end)
    return x

# Exercise 4: forgets the jump after the noise
def push_and_restart(model, x, times, back, noise):
    for t, s in zip(times, times[1:]): x = model(x, t, s)
    return model.flow.interpolate(x, noise, back)

# Exercise 4: takes noise of spread 1
def push_and_restart(model, x, times, back, noise):
    for t, s in zip(times, times[1:]): x = model(x, t, s)
    return model(model.flow.interpolate(x, noise/.5, back), back, times[-1])

# Exercise 5: draws a whole batch at once
def noise_batches(n, batch, seed):
    g = torch.Generator().manual_seed(seed)
    for i in range(0, n, batch): yield torch.randn(2, min(batch, n - i), 4, generator=g)

# Exercise 5: starts the generator anew for each batch
def noise_batches(n, batch, seed):
    for i in range(0, n, batch):
        g = torch.Generator().manual_seed(seed)
        yield torch.stack([torch.randn(2, 4, generator=g) for _ in range(min(batch, n - i))], 1)

# Exercise 5: full batches only
def noise_batches(n, batch, seed):
    g = torch.Generator().manual_seed(seed)
    for i in range(0, n, batch):
        yield torch.stack([torch.randn(2, 4, generator=g) for _ in range(batch)], 1)

# Exercise 5: reshapes, so that the draws of different images mix
def noise_batches(n, batch, seed):
    g = torch.Generator().manual_seed(seed)
    for i in range(0, n, batch):
        m = min(batch, n - i)
        yield torch.stack([torch.randn(2, 4, generator=g) for _ in range(m)]).reshape(2, m, 4)

# Exercise 1: two digits where four are asked
answer = .607
