# Exercise 1
def patches(x, p):
    B, C, H, W = x.shape
    h, w = H//p, W//p
    return x.reshape(B, C, h, p, w, p).permute(0, 2, 4, 1, 3, 5).reshape(B, h*w, C*p*p)

# Exercise 2
def modulate(x, shift, scale):
    centred = x - x.mean(-1, keepdim=True)
    normed = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    return normed * (1 + scale) + shift

# Exercise 3
answer = ["gate1", "gate2"]

# Exercise 4
def block_parameters(D):
    attention = D*3*D + 3*D + D*D + D
    mlp = D*4*D + 4*D + 4*D*D + D
    modulation = D*6*D + 6*D
    return attention + mlp + modulation        # 18 D² + 15 D

# Exercise 5
def takeover(D, p):
    tokens = 6 * D
    side = p * math.ceil(math.sqrt(tokens))
    return tokens, side
