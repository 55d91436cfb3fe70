"Solutions of chapter 07"

# Exercise 1
def progress(N, step, size):
    return divmod(step*size, N)          # images shown so far, cut into pieces of N

# Exercise 2
def part(size, rank, world):
    return slice(size*rank // world, size*(rank + 1) // world)

# Exercise 3
def to_bytes(x):
    return ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)

# Exercise 4
def standardised(raw, mean, std, z):
    return raw(z / .5 * std + mean) * std.prod() / .25      # dx = (std_1/.5)(std_2/.5) dz

# Exercise 5
resumes = dict(A=False, B=True, C=False, D=True)
