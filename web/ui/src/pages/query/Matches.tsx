import { useQuery } from "@tanstack/react-query";
import { useMemo } from "react";
import { type ApiError, requestPrometheus } from "../../api/client";
import { Failure } from "../../components/Loaded";
import { State } from "../../components/Notice";
import { formatSeries, plural } from "../../lib/format";
import { type Matching, type Node, serialize } from "./ast";
import { type MatchGroup, matchGroups } from "./matching";
import css from "./query.module.css";
import type { Series } from "./series";

interface Props {
  node: Extract<Node, { type: "binaryExpr" }>;
  matching: Matching;
  moment: number | null;
  run: number;
}

const mostGroups = 50;
const mostSeries = 10;

/** What a binary operator found on both sides and made of it, group by group, with what does not fit. */
export function Matches({ node, matching, moment, run }: Props) {
  const { data, error } = useQuery<{ left: Series[]; right: Series[]; result?: Series[] }, ApiError>({
    queryKey: ["matches", serialize(node), moment, run],
    queryFn: async ({ signal }) => {
      const time = (moment ?? Date.now()) / 1000;
      const ask = async (n: Node) =>
        (await requestPrometheus<{ result: Series[] }>("query", { params: { query: serialize(n), time }, signal })).data.result;
      // Where groups do not fit, the whole fails, which is said where it is counted; the groups say which.
      const [left, right, result] = await Promise.all([ask(node.lhs), ask(node.rhs), ask(node).catch(() => undefined)]);
      return { left, right, result };
    },
    staleTime: Number.POSITIVE_INFINITY,
    gcTime: 60_000,
    refetchOnWindowFocus: false,
  });
  const groups = useMemo(() => data && matchGroups(node.op, matching, data.left, data.right, data.result), [data, node.op, matching]);
  if (error) return <Failure error={error} />;
  if (!groups) return <span className={css.hint}>…</span>;
  return (
    <table className={css.table}>
      <caption className={css.hint} style={{ textAlign: "left" }}>
        {plural(groups.length, "group")}
        {groups.length > mostGroups && `, of which ${mostGroups} are shown`}
      </caption>
      <thead>
        <tr>
          {["Matched by", "Left", "Right", "Result"].map((h) => (
            <th key={h} scope="col" style={{ textAlign: "left", padding: "0.3rem 0.5rem" }}>
              {h}
            </th>
          ))}
        </tr>
      </thead>
      <tbody>
        {groups.slice(0, mostGroups).map((g) => (
          <tr key={formatSeries(g.labels)}>
            <td className={css.series}>
              {formatSeries(g.labels)}
              {g.error && (
                <div>
                  <State kind="bad">{g.error}</State>
                </div>
              )}
            </td>
            <Side series={g.left} none="no match" />
            <Side series={g.right} none="no match" />
            <Side series={g.result} none="nothing" />
          </tr>
        ))}
      </tbody>
    </table>
  );
}

function Side({ series, none }: { series: MatchGroup["left"]; none: string }) {
  return (
    <td className={css.series}>
      {series.length === 0 && (
        <span className={css.hint} style={{ whiteSpace: "nowrap" }}>
          {none}
        </span>
      )}
      {series.slice(0, mostSeries).map((s, i) => (
        <div key={i}>
          {formatSeries(s.metric)} <b>{s.value?.[1] ?? (s.histogram && `histogram of ${s.histogram[1].count}`)}</b>
        </div>
      ))}
      {series.length > mostSeries && <span className={css.hint}>and {series.length - mostSeries} more</span>}
    </td>
  );
}
