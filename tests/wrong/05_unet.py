# Exercise 1: forgets the first convolution
def stack(size, width, mults, blocks):
    maps, c = [], width
    for i, mult in enumerate(mults):
        if i: maps.append((c, size >> i))
        c = width * mult
        maps += [(c, size >> i)] * blocks
    return maps

# Exercise 1: the halving block already widens
def stack(size, width, mults, blocks):
    maps = [(width, size)]
    for i, mult in enumerate(mults):
        maps += [(width * mult, size >> i)] * (blocks + (i > 0))
    return maps

# Exercise 1: multiplies the widths up
def stack(size, width, mults, blocks):
    maps, c = [(width, size)], width
    for i, mult in enumerate(mults):
        if i: maps.append((c, size >> i))
        c = c * mult
        maps += [(c, size >> i)] * blocks
    return maps

# Exercise 2: softmax over the queries
def attend(q, k, v):
    return v @ (q.transpose(1, 2) @ k / q.shape[1]**.5).softmax(1).transpose(1, 2)

# Exercise 2: no root of C
def attend(q, k, v):
    return v @ (q.transpose(1, 2) @ k).softmax(-1).transpose(1, 2)

# Exercise 2: weights not transposed
def attend(q, k, v):
    return v @ (q.transpose(1, 2) @ k / q.shape[1]**.5).softmax(-1)

# Exercise 3: all that work on one pixel
answer = ["1x1 convolution", "SiLU", "shift per channel"]

# Exercise 3: all that are linear
answer = ["1x1 convolution", "3x3 convolution", "shift per channel"]

# Exercise 3: forgets the shift
answer = ["1x1 convolution"]

# Exercise 4: sqrt(2) for every share
def keep_size(a): return 2**.5

# Exercise 4: adds the weights, not their squares
def keep_size(a): return 1 / ((1-a) + a)

# Exercise 4: forgets the root
def keep_size(a): return 1 / ((1-a)**2 + a**2)
