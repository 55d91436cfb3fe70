# Exercise 1: the spread of the data, as if nothing were lost
def spread(t):
    return .5

# Exercise 1: the spread of the signal in x_t
def spread(t):
    return .5 * (1 - t)

# Exercise 1: the spread of x given x_t, which is what gets lost
def spread(t):
    return .5 * t / math.sqrt((1 - t)**2 + t**2)

# Exercise 2: forgets that the mean moves too
def gaussian_jump(x_t, t, s, m, v):
    std = lambda t: math.sqrt((1 - t)**2 * v**2 + t**2 * .25)
    return std(s)/std(t) * x_t

# Exercise 2: jumps towards the noise
def gaussian_jump(x_t, t, s, m, v):
    std = lambda t: math.sqrt((1 - t)**2 * v**2 + t**2 * .25)
    return (1 - s)*m + std(t)/std(s) * (x_t - (1 - t)*m)

# Exercise 2: DDIM with the posterior mean, the denoiser's jump
def gaussian_jump(x_t, t, s, m, v):
    guess = m + (1 - t)*v**2 / ((1 - t)**2*v**2 + t**2*.25) * (x_t - (1 - t)*m)
    return (1 - s/t)*guess + s/t*x_t

# Exercise 2: noise of standard deviation 1
def gaussian_jump(x_t, t, s, m, v):
    std = lambda t: math.sqrt((1 - t)**2 * v**2 + t**2)
    return (1 - s)*m + std(s)/std(t) * (x_t - (1 - t)*m)

# Exercise 3: forgets the factor 2 of the definition
def two_points(d, w):
    return 1 - torch.exp(-w*d)

# Exercise 3: takes the RBF kernel
def two_points(d, w):
    return 2 - 2*torch.exp(-w*d**2/2)

# Exercise 4: the last, shorter link is not counted
def rounds(t, s, u):
    return math.floor((t/(1 - t) - s/(1 - s)) / u)

# Exercise 4: steps in t, not in eta
def rounds(t, s, u):
    return math.ceil((t - s) / u)

# Exercise 4: counts down to eta = 0, whatever s
def rounds(t, s, u):
    return math.ceil(t/(1 - t) / u)

# Exercise 5: all rounds at once
def known(r_of, s, rounds, times):
    return r_of(times) <= s

# Exercise 5: one round too many
def known(r_of, s, rounds, times):
    for _ in range(rounds + 1): times = r_of(times)
    return times <= s

# Exercise 5: calls every jump right whose teacher starts lower
def known(r_of, s, rounds, times):
    return (r_of(times) < times) | (times <= s)

# Exercise 4: one link more where the last one is whole, or none is needed
def rounds(t, s, u):
    return math.floor((t/(1 - t) - s/(1 - s)) / u) + 1
