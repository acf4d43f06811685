#!/bin/sh
# Three replicas on one machine, with one cluster key, until Ctrl-C. `make demo` starts it; the README says what to try.
# A replica that ends is started again after a minute. Usage: demo.sh TOCSIN DIR
set -eu
tocsin=$1
mkdir -p "$2"
dir=$(cd "$2" && pwd)
rm -f "$dir"/*.pid
[ -s "$dir/cluster.key" ] || (umask 077 && "$tocsin" cluster keygen > "$dir/cluster.key")
cat > "$dir/rules.yml" <<'RULES'
groups:
  - name: demo
    interval: 5s
    rules:
      - alert: ReplicaDown
        expr: up{job="tocsin"} == 0
        for: 5s
        annotations: {summary: '{{ $labels.instance }} does not answer.'}
RULES

# replica NAME N runs one of them, and again when it has ended.
replica() {
  web=$((9090 + 100 * $2))
  cat > "$dir/$1.yml" <<CONFIG
replica: {name: $1, zone: zone-$1}
cluster:
  name: demo
  key_file: cluster.key
  peers: ["127.0.0.1:9094", "127.0.0.1:9194", "127.0.0.1:9294"]
prometheus:
  global: {scrape_interval: 5s, evaluation_interval: 5s}
  rule_files: [rules.yml]
  scrape_configs:
    - job_name: tocsin
      static_configs: [{targets: ["127.0.0.1:9090", "127.0.0.1:9190", "127.0.0.1:9290"]}]
CONFIG
  while true; do
    "$tocsin" run --config.file="$dir/$1.yml" --storage.path="$dir/$1" \
      --web.listen-address="127.0.0.1:$web" --alertmanager.listen-address="127.0.0.1:$((web + 3))" \
      --cluster.listen-address="127.0.0.1:$((web + 4))" --grpc.listen-address="127.0.0.1:$((10901 + 100 * $2))" \
      >> "$dir/$1.log" 2>&1 &
    echo $! > "$dir/$1.pid"
    echo "replica $1: http://127.0.0.1:$web/   Alertmanager http://127.0.0.1:$((web + 3))   process $!   log $dir/$1.log"
    wait $! || true
    [ -e "$dir/$1.pid" ] || return 0
    echo "replica $1 has ended; it starts again in a minute"
    sleep 60
  done
}

end() {
  trap - INT TERM EXIT
  for f in "$dir"/*.pid; do
    pid=$(cat "$f")
    rm -f "$f"
    kill "$pid" 2>/dev/null || true
  done
  kill $helpers 2>/dev/null || true
  wait
}
helpers=
trap end INT TERM EXIT
n=0
for name in a b c; do
  : > "$dir/$name.log"
  replica "$name" "$n" &
  helpers="$helpers $!"
  tail -n +1 -F "$dir/$name.log" 2>/dev/null |
    sed -un "s/.*msg=\"\(alert [a-z]*: [^\"]*\)\".* labels=\(.*\) starts_at.*/replica $name notifies: \1 \2/p" &
  helpers="$helpers $!"
  n=$((n + 1))
done
echo "The cluster: http://127.0.0.1:9090/api/tocsin/v1/cluster   Notifications appear here. Stop with Ctrl-C."
wait
