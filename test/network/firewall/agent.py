# Speaks TCP, UDP and raw frames in the network namespace that it was started in: one JSON command a line in, one JSON answer a line out.
import json, socket, sys, threading

held = {}
frames = []
sniffs = []

def family(address):
    return socket.AF_INET6 if ':' in address else socket.AF_INET

def echo(connection, peer):
    with connection:
        connection.sendall(f'hello {peer}\n'.encode())
        while data := connection.recv(4096):
            connection.sendall(data)

def serve_tcp(server):
    while True:
        connection, peer = server.accept()
        threading.Thread(target=echo, args=(connection, peer[0]), daemon=True).start()

def serve_udp(server):
    while True:
        data, peer = server.recvfrom(4096)
        server.sendto(f'hello {peer[0]}\n'.encode(), peer)

def listen(kind, address, port):
    server = socket.socket(family(address), socket.SOCK_STREAM if kind == 'tcp' else socket.SOCK_DGRAM)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if ':' in address:
        server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    server.bind((address, port))
    if kind == 'tcp':
        server.listen(16)
    threading.Thread(target=serve_tcp if kind == 'tcp' else serve_udp, args=(server,), daemon=True).start()
    return 'listens'

def dial(address, port, timeout):
    client = socket.socket(family(address), socket.SOCK_STREAM)
    client.settimeout(timeout)
    client.connect((address, port))
    return client, client.recv(100).decode().strip()

def tcp(address, port, timeout):
    client, said = dial(address, port, timeout)
    client.close()
    return said

def hold(name, address, port, timeout):
    held[name], said = dial(address, port, timeout)
    return said

def say(name, words):
    held[name].sendall(words.encode())
    return held[name].recv(100).decode()

def udp(address, port, timeout):
    with socket.socket(family(address), socket.SOCK_DGRAM) as client:
        client.settimeout(timeout)
        client.connect((address, port))
        client.send(b'who am I')
        return client.recv(100).decode().strip()

def checksum(data):
    total = sum(int.from_bytes(data[at:at + 2], 'big') for at in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xffff) + (total >> 16)
    return ~total & 0xffff

def ping(address, timeout):
    six = ':' in address
    request = bytes([128 if six else 8, 0, 0, 0, 0, 7, 0, 1])
    if not six:
        request = request[:2] + checksum(request).to_bytes(2, 'big') + request[4:]
    with socket.socket(family(address), socket.SOCK_RAW, socket.IPPROTO_ICMPV6 if six else socket.IPPROTO_ICMP) as raw:
        raw.settimeout(timeout)
        raw.connect((address, 0))
        raw.send(request)
        while True:
            reply = raw.recv(200)
            reply = reply if six else reply[20:]
            if reply[0] == (129 if six else 0):
                return 'answered'

def send(hexes):
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
        raw.bind(('eth0', 0))
        for one in hexes:
            raw.send(bytes.fromhex(one))
    return 'sent'

def hear(raw):
    while True:
        frames.append(raw.recv(4096).hex())

def sniff():
    if not sniffs:
        raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        raw.bind(('eth0', 0))
        sniffs.append(threading.Thread(target=hear, args=(raw,), daemon=True))
        sniffs[0].start()
    frames.clear()
    return 'sniffs'

def seen(part):
    return any(part in frame for frame in frames)

for line in sys.stdin:
    name, *arguments = json.loads(line)
    try:
        answer = globals()[name](*arguments)
    except Exception as error:
        answer = type(error).__name__ if not isinstance(error, OSError) or error.errno is None else f'{type(error).__name__} {error.errno}'
    print(json.dumps(answer), flush=True)
