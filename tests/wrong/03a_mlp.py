# Exercise 1: forgets the turn's 2 pi
answer = 1 / 1000

# Exercise 1: forgets the factor 1000
answer = 2 * math.pi

# Exercise 1: half a turn
answer = math.pi / 1000

# Exercise 1: the slowest wave
answer = 2 * math.pi * 10

# Exercise 2: counts the frequencies
def parameters(dim, width, depth, waves, classes):
    layer = lambda a, b: a*b + b
    table = (classes + 1) * width if classes else 0
    return layer(dim + 2*waves, width) + 2*layer(64, width) + (depth - 1)*layer(width, width) + layer(width, dim) + table + dim*waves

# Exercise 2: one hidden layer too many
def parameters(dim, width, depth, waves, classes):
    layer = lambda a, b: a*b + b
    table = (classes + 1) * width if classes else 0
    return layer(dim + 2*waves, width) + 2*layer(64, width) + depth*layer(width, width) + layer(width, dim) + table

# Exercise 2: forgets the null row
def parameters(dim, width, depth, waves, classes):
    layer = lambda a, b: a*b + b
    return layer(dim + 2*waves, width) + 2*layer(64, width) + (depth - 1)*layer(width, width) + layer(width, dim) + classes*width

# Exercise 2: forgets the biases
def parameters(dim, width, depth, waves, classes):
    table = (classes + 1) * width if classes else 0
    return (dim + 2*waves)*width + 2*64*width + (depth - 1)*width**2 + width*dim + table

# Exercise 2: one feature a wave
def parameters(dim, width, depth, waves, classes):
    layer = lambda a, b: a*b + b
    table = (classes + 1) * width if classes else 0
    return layer(dim + waves, width) + 2*layer(64, width) + (depth - 1)*layer(width, width) + layer(width, dim) + table

# Exercise 3: forgets to normalise
def features(x, frequencies):
    phase = x @ frequencies
    return torch.cat([phase.cos(), phase.sin()], 1)

# Exercise 3: cosines only
def features(x, frequencies):
    return (x @ frequencies).cos() / frequencies.shape[1]**.5

# Exercise 3: cosines twice in place of the sines
def features(x, frequencies):
    phase = x @ frequencies
    return torch.cat([phase.cos(), phase.cos()], 1) / frequencies.shape[1]**.5

# Exercise 3: each wave its own random phase on top of a missing sine
def features(x, frequencies):
    phase = x @ frequencies
    return torch.cat([phase.cos(), (phase + 1).sin()], 1) / frequencies.shape[1]**.5

# Exercise 3: turns in place of radians
def features(x, frequencies):
    phase = 2 * math.pi * x @ frequencies
    return torch.cat([phase.cos(), phase.sin()], 1) / frequencies.shape[1]**.5

# Exercise 1: a change in which the wave hardly moves
answer = 1e-6
