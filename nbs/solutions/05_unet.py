# Exercise 1
def stack(size, width, mults, blocks):
    maps, c = [(width, size)], width
    for i, mult in enumerate(mults):
        if i: maps.append((c, size >> i))
        c = width * mult
        maps += [(c, size >> i)] * blocks
    return maps

# Exercise 2
def attend(q, k, v):
    weights = (q.transpose(1, 2) @ k / q.shape[1]**.5).softmax(-1)        # [B, queries, keys]
    return v @ weights.transpose(1, 2)

# Exercise 3
answer = ["1x1 convolution", "shift per channel"]

# Exercise 4
def keep_size(a):
    return 1 / ((1-a)**2 + a**2)**.5
