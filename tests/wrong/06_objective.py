# Exercise 1: eta is not raised to its lowest value before it is inverted
def teacher_start(s, t, u, eps=.006):
    eta = t / (1 - t) - u
    return torch.maximum(s, eta / (1 + eta))

# Exercise 1: r may be below s
def teacher_start(s, t, u, eps=.006):
    eta = (t / (1 - t) - u).clamp_min(eps / (1 - eps))
    return eta / (1 + eta)

# Exercise 1: a constant step in t instead of eta
def teacher_start(s, t, u, eps=.006):
    return torch.maximum(s, t - u)

# Exercise 2: one coin for a whole group
def drop(label, share, generator):
    coin = torch.rand(len(label) // 4, generator=generator).repeat_interleave(4)
    return torch.where(coin < share, -1, label)

# Exercise 2: dropped labels become class 0
def drop(label, share, generator):
    return torch.where(torch.rand(len(label), generator=generator) < share, 0, label)

# Exercise 2: works in place
def drop(label, share, generator):
    label[torch.rand(len(label), generator=generator) < share] = -1
    return label

# Exercise 2: keeps the share that should be dropped
def drop(label, share, generator):
    return torch.where(torch.rand(len(label), generator=generator) < share, label, -1)

# Exercise 3: the sigmoid's sign the wrong way round
limit = math.exp(-4)

# Exercise 3: takes the infinite factor for the winner
limit = math.inf

# Exercise 3: b itself
limit = 4.

# Exercise 4: takes t - s for the coefficient of the jump
verdict = dict(A="right", B="gradient", C="noise", D="teacher")

# Exercise 4: believes DDIM with the true x changes the noise
verdict = dict(A="width", B="gradient", C="noise", D="teacher")

# Exercise 4: does not see the missing stop-gradient
verdict = dict(A="width", B="right", C="right", D="teacher")

# Exercise 5: several particles, several times the work
def cost(B, M):
    return B // M, 2*B*M, 1 - 1/M

# Exercise 5: each particle has its own time
def cost(B, M):
    return B, 2*B, 1 - 1/M

# Exercise 5: the share of pairs with the same index
def cost(B, M):
    return B // M, 2*B, 1/M

# Exercise 2: does not use the generator
def drop(label, share, generator):
    return torch.where(torch.rand(len(label)) < share, -1, label)
