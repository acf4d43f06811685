"""A real OpenStack Swift for the tests, of one machine and one copy, with its built-in accounts.

    swiftserver.py FOLDER HOST                 makes all of it: rings, configuration, devices
    swiftserver.py FOLDER HOST KIND            serves: account, container, object, or proxy
"""

import os
import sys

from swift.common import utils

PORTS = {"account": 6202, "container": 6201, "object": 6200, "proxy": 8080, "cache": 11211}

COMMON = """
[DEFAULT]
bind_ip = {host}
bind_port = {port}
user = root
swift_dir = {folder}
devices = {folder}/devices
mount_check = false
workers = 0
log_level = INFO
fallocate_reserve = 0
"""

STORAGE = COMMON + """
[pipeline:main]
pipeline = {kind}-server
[app:{kind}-server]
use = egg:swift#{kind}
"""

PROXY = COMMON + """
[pipeline:main]
pipeline = catch_errors gatekeeper healthcheck cache listing_formats bulk tempauth copy slo dlo proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = testing .admin
[filter:cache]
use = egg:swift#memcache
memcache_servers = {host}:{cache}
""" + "".join("[filter:%s]\nuse = egg:swift#%s\n" % (name, name) for name in
              ("catch_errors", "gatekeeper", "healthcheck", "listing_formats", "bulk", "copy", "slo", "dlo"))

HASH = """
[swift-hash]
swift_hash_path_suffix = end
swift_hash_path_prefix = begin
[storage-policy:0]
name = only
default = yes
"""


def write(path, text):
    with open(path, "w") as f:
        f.write(text)


def make(folder, host):
    from swift.common.ring import RingBuilder

    os.makedirs(os.path.join(folder, "devices", "d1"))
    write(os.path.join(folder, "swift.conf"), HASH)
    for kind in ("account", "container", "object"):
        ring = RingBuilder(4, 1, 0)
        ring.add_dev({"region": 1, "zone": 1, "ip": host, "port": PORTS[kind], "replication_ip": host,
                      "replication_port": PORTS[kind], "device": "d1", "weight": 1, "meta": ""})
        ring.rebalance()
        ring.get_ring().save(os.path.join(folder, kind + ".ring.gz"))
    for kind in ("account", "container", "object", "proxy"):
        text = PROXY if kind == "proxy" else STORAGE
        write(os.path.join(folder, kind + ".conf"),
              text.format(folder=folder, host=host, kind=kind, port=PORTS[kind], cache=PORTS["cache"]))


def serve(folder, kind):
    utils.set_swift_dir(folder)
    from swift.common.wsgi import run_wsgi

    more = {}
    if kind == "object":
        from swift.obj import server
        more["global_conf_callback"] = server.global_conf_callback
    return run_wsgi(os.path.join(folder, kind + ".conf"), kind + "-server", verbose=True, **more)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        make(*sys.argv[1:])
    else:
        sys.exit(serve(sys.argv[1], sys.argv[3]))
