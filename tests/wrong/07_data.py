# Exercise 1: every epoch begins with a new batch
def progress(N, step, size):
    per_epoch = -(-N // size)
    return step // per_epoch, step % per_epoch * size

# Exercise 1: the last, unfinished batch of an epoch is dropped
def progress(N, step, size):
    per_epoch = max(1, N // size)
    return step // per_epoch, step % per_epoch * size

# Exercise 1: counts steps instead of images
def progress(N, step, size):
    return divmod(step, N)

# Exercise 2: loses what does not divide
def part(size, rank, world):
    return slice(rank * (size // world), (rank + 1) * (size // world))

# Exercise 2: the last process gets the rest
def part(size, rank, world):
    n = size // world
    return slice(rank*n, size if rank == world - 1 else (rank + 1)*n)

# Exercise 2: every world-th image, so the order is another
def part(size, rank, world):
    return slice(rank, size, world)

# Exercise 3: cuts off instead of rounding
def to_bytes(x):
    return ((x + 1) * 127.5).clamp(0, 255).to(torch.uint8)

# Exercise 3: scales by 128
def to_bytes(x):
    return ((x + 1) * 128).round().clamp(0, 255).to(torch.uint8)

# Exercise 3: numbers beyond the ends wrap around
def to_bytes(x):
    return ((x + 1) * 127.5).round().long().to(torch.uint8)

# Exercise 3: stays a float
def to_bytes(x):
    return ((x + 1) * 127.5).round().clamp(0, 255)

# Exercise 4: no Jacobian
def standardised(raw, mean, std, z):
    return raw(z / .5 * std + mean)

# Exercise 4: the Jacobian upside down
def standardised(raw, mean, std, z):
    return raw(z / .5 * std + mean) * .25 / std.prod()

# Exercise 4: asks the raw density at z
def standardised(raw, mean, std, z):
    return raw((z - mean) / std * .5) * std.prod() / .25

# Exercise 4: one factor of 0.5 where two coordinates need two
def standardised(raw, mean, std, z):
    return raw(z / .5 * std + mean) * std.prod() / .5

# Exercise 5: believes a generator seeded at the start can resume
resumes = dict(A=True, B=True, C=False, D=True)

# Exercise 5: believes each process may draw for its own part
resumes = dict(A=False, B=True, C=True, D=True)

# Exercise 5: takes a flawed seed for one that cannot resume
resumes = dict(A=False, B=False, C=False, D=True)
