# Exercise 1
answer = .25        # the guess at t = 1 is 0, so x halves to .25; at t = 1/2 the guess is x itself

# Exercise 2
def heun(x, t, s, velocity):
    v = velocity(x, t)
    return x + (s - t) * (v + velocity(x + (s - t)*v, s)) / 2

# Exercise 3
def target(x, eps, t, s, sigma_d):
    x_t, x_s, norm = (1 - t)*x + t*eps, (1 - s)*x + s*eps, (1 - t)**2 + t**2
    c_skip, c_out = ((1 - s)*(1 - t) + s*t) / norm, -sigma_d * (t - s) / norm**.5
    return (x_s - c_skip*x_t) / c_out       # = ((1 - t) eps - t x) / (sigma_d sqrt(norm)), whatever s is
