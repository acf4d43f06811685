import { useJSON } from "../api/hooks";
import type { Cluster, Member } from "../api/types";

/** Who is there. Every page knows which replica it speaks with. */
export function useCluster(): { cluster?: Cluster; self?: Member } {
  const { data } = useJSON<Cluster>("api/tocsin/v1/cluster", { refresh: 15_000 });
  return { cluster: data, self: data?.members?.find((m) => m.self) };
}
