# Exercise 1: reshapes without bringing the pixels of a square together
def patches(x, p):
    B, C, H, W = x.shape
    return x.reshape(B, (H//p)*(W//p), C*p*p)

# Exercise 1: channels last within a token
def patches(x, p):
    B, C, H, W = x.shape
    return x.reshape(B, C, H//p, p, W//p, p).permute(0, 2, 4, 3, 5, 1).reshape(B, -1, C*p*p)

# Exercise 1: tokens column by column
def patches(x, p):
    B, C, H, W = x.shape
    return x.reshape(B, C, H//p, p, W//p, p).permute(0, 4, 2, 1, 3, 5).reshape(B, -1, C*p*p)

# Exercise 2: unbiased variance
def modulate(x, shift, scale):
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) + 1e-6).sqrt() * (1 + scale) + shift

# Exercise 2: scale in place of 1 + scale
def modulate(x, shift, scale):
    return torch.nn.functional.layer_norm(x, x.shape[-1:], eps=1e-6) * scale + shift

# Exercise 2: normalises over the tokens
def modulate(x, shift, scale):
    return (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True, correction=0) + 1e-6).sqrt() * (1 + scale) + shift

# Exercise 2: shifts first
def modulate(x, shift, scale):
    return (torch.nn.functional.layer_norm(x, x.shape[-1:], eps=1e-6) + shift) * (1 + scale)

# Exercise 3: all six
answer = ["shift1", "scale1", "gate1", "shift2", "scale2", "gate2"]

# Exercise 3: only attention's gate
answer = ["gate1"]

# Exercise 3: shifts and scales, as if the gates were one
answer = ["shift1", "scale1", "shift2", "scale2"]

# Exercise 4: no biases
def block_parameters(D): return 18*D*D

# Exercise 4: no modulation
def block_parameters(D): return 12*D*D + 9*D

# Exercise 4: forgets attention's output
def block_parameters(D): return 17*D*D + 14*D

# Exercise 5: divides the wrong way
def takeover(D, p): return 24*D, p * math.ceil(math.sqrt(24*D))

# Exercise 5: forgets that a token is p pixels wide
def takeover(D, p): return 6*D, math.ceil(math.sqrt(6*D))

# Exercise 5: one answer for all
def takeover(D, p): return 2304, 96

# Exercise 5: rounds the side down
def takeover(D, p):
    return 6*D, p * int(math.sqrt(6*D))
