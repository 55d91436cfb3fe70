# Exercise 1
# E[x | x_t] = cov/var * x_t with cov = (1-t)/4 and var = ((1-t)^2 + t^2)/4; its std is cov / sqrt(var)
def spread(t):
    return .5 * (1 - t) / math.sqrt((1 - t)**2 + t**2)

# Exercise 2
# q_t is N((1-t) m, (1-t)^2 v^2 + t^2 / 4): keeping the rank means keeping (x_t - mean) / std
def gaussian_jump(x_t, t, s, m, v):
    std = lambda t: math.sqrt((1 - t)**2 * v**2 + t**2 * .25)
    return (1 - s)*m + std(s)/std(t) * (x_t - (1 - t)*m)

# Exercise 3
# k(0, 0) + k(d, d) - 2 k(0, d). It saturates at 2: far off, the slope 2 w exp(-w d) is nearly 0, so w must fit the distance
def two_points(d, w):
    return 2 - 2*torch.exp(-w*d)

# Exercise 4
# each link lowers eta by u, the last one by what is left; for ImageNet 4,096 links
def rounds(t, s, u):
    return math.ceil((t/(1 - t) - s/(1 - s)) / u)

# Exercise 5
# a jump is right after n rounds if n teachers further down the chain has arrived at s. Both other rules violate t - r >= delta > 0
def known(r_of, s, rounds, times):
    for _ in range(rounds): times = r_of(times)
    return times <= s
