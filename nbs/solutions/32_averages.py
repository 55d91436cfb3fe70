"Solutions of lab 32"

# Exercise 1
def mean_age(gamma):
    return 1 / (gamma + 2)

# Exercise 2
def decay_for(width, steps):
    std = width * steps                                  # std (1 - d) = root of d, a quadratic in that root
    return ((math.sqrt(1 + 4*std**2) - 1) / (2*std))**2

# Exercise 3
pair = (-1, 2)           # the mean of all is half of each half's mean
