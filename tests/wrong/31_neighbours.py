# Exercise 1: takes the denoiser for a sampler
answer = .5

# Exercise 1: thinks of one step
answer = 0.

# Exercise 1: halves twice
answer = .125

# Exercise 2: Euler's step
def heun(x, t, s, velocity): return x + (s - t)*velocity(x, t)

# Exercise 2: looks at the later time, but not where it has arrived
def heun(x, t, s, velocity): return x + (s - t) * (velocity(x, t) + velocity(x, s)) / 2

# Exercise 2: uses only the second velocity
def heun(x, t, s, velocity): return x + (s - t)*velocity(x + (s - t)*velocity(x, t), s)

# Exercise 2: adds the velocities without halving
def heun(x, t, s, velocity):
    v = velocity(x, t)
    return x + (s - t) * (v + velocity(x + (s - t)*v, s))

# Exercise 3: lands on x instead of x_s
def target(x, eps, t, s, sigma_d):
    x_t, norm = (1 - t)*x + t*eps, (1 - t)**2 + t**2
    return (x - ((1 - s)*(1 - t) + s*t) / norm * x_t) / (-sigma_d * (t - s) / norm**.5)

# Exercise 3: forgets sigma_d
def target(x, eps, t, s, sigma_d): return ((1 - t)*eps - t*x) / ((1 - t)**2 + t**2)**.5

# Exercise 3: the velocity, which is Euler-FM's target
def target(x, eps, t, s, sigma_d): return (eps - x) / sigma_d

# Exercise 3: forgets the minus of c_out
def target(x, eps, t, s, sigma_d): return -((1 - t)*eps - t*x) / (sigma_d * ((1 - t)**2 + t**2)**.5)

# Exercise 2: another method of second order, the midpoint's
def heun(x, t, s, velocity):
    return x + (s - t) * velocity(x + (s - t)/2 * velocity(x, t), (t + s)/2)
