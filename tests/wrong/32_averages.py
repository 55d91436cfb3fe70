# Exercise 1: the mean instead of the age
def mean_age(gamma):
    return (gamma + 1) / (gamma + 2)

# Exercise 1: forgets the 1 in the norm of the density
def mean_age(gamma):
    return 1 / (gamma + 1)

# Exercise 2: the approximation for long averages
def decay_for(width, steps):
    return 1 - 1 / (width * steps)

# Exercise 2: the root of the decay
def decay_for(width, steps):
    std = width * steps
    return (math.sqrt(1 + 4*std**2) - 1) / (2*std)

# Exercise 3: the difference, which sums to nothing
pair = (-1, 1)

# Exercise 3: the other way round
pair = (2, -1)
