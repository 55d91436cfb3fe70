# Exercise 1
answer = 2/math.pi * math.atan(1.4)          # eta = tan(pi t/2); 0.6051

# Exercise 2
def log_grid(steps, T, eps):
    i = torch.arange(steps + 1, dtype=torch.float64)
    first, last = math.log(T / (1 - T)), math.log(eps / (1 - eps))
    eta = torch.exp(first + i/steps * (last - first))
    return eta / (1 + eta)

# Exercise 3
def left_over(wrong, starts, p):
    def spread(t): return math.hypot((1 - t)*p, t*.5)
    for t in starts[1:]: wrong *= (1 - t)*p / spread(t)      # a restart: noise and jump
    return wrong * p / spread(starts[0])                     # the first jump, from where the error was measured

# Exercise 4
def push_and_restart(model, x, times, back, noise):
    for t, s in zip(times, times[1:]): x = model(x, t, s)
    return model(model.flow.interpolate(x, noise, back), back, times[-1])

# Exercise 5
def noise_batches(n, batch, seed):
    g = torch.Generator().manual_seed(seed)
    for i in range(0, n, batch):
        yield torch.stack([torch.randn(2, 4, generator=g) for _ in range(min(batch, n - i))], 1)
