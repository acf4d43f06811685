import { Skeleton } from "@mantine/core";
import { useQuery } from "@tanstack/react-query";
import { useState } from "react";
import { type ApiError, requestPrometheus } from "../../api/client";
import { Failure } from "../../components/Loaded";
import { State } from "../../components/Notice";
import { humanDuration } from "../../lib/duration";
import { plural } from "../../lib/format";
import { children, countExpr, explain, type Node, nodeTitle, serialize } from "./ast";
import { Matches } from "./Matches";
import css from "./query.module.css";
import type { Series } from "./series";

interface Props {
  expr: string;
  moment: number | null;
  run: number;
  /** The tree alone, of which a part can be chosen. */
  treeOnly?: boolean;
  chosen?: string;
  onChoose?: (expr: string) => void;
}

/** The expression as a tree, each part with how many series it has. */
export default function ExplainView({ expr, moment, run, treeOnly, chosen, onChoose }: Props) {
  const { data, error } = useQuery<Node, ApiError>({
    queryKey: ["parse", expr],
    queryFn: async ({ signal }) => (await requestPrometheus<Node>("parse_query", { params: { query: expr }, signal })).data,
    staleTime: Number.POSITIVE_INFINITY,
  });
  if (error) return <Failure error={error} />;
  if (!data) return <Skeleton height={100} />;
  return (
    <ul className={css.tree}>
      <Branch node={data} moment={moment} run={run} treeOnly={treeOnly} chosen={chosen} onChoose={onChoose} />
    </ul>
  );
}

function Branch({ node, ...rest }: { node: Node } & Omit<Props, "expr">) {
  const { moment, run, treeOnly, chosen, onChoose } = rest;
  const [open, setOpen] = useState(false);
  const text = serialize(node);
  const doc = useFunctionDoc(node, !treeOnly);
  return (
    <li>
      <button
        type="button"
        className={css.node}
        aria-pressed={onChoose ? chosen === text : undefined}
        aria-expanded={onChoose ? undefined : open}
        onClick={() => (onChoose ? onChoose(text) : setOpen(!open))}
      >
        <code>{nodeTitle(node)}</code>
        <Count node={node} moment={moment} run={run} />
        {!treeOnly && <span className={css.hint}>{explain(node, doc)}</span>}
      </button>
      {open && (
        <div style={{ padding: "0.25rem 0.5rem 0.5rem", overflowX: "auto" }}>
          <code>{text}</code>
          {node.type === "binaryExpr" && node.matching && <Matches node={node} matching={node.matching} moment={moment} run={run} />}
        </div>
      )}
      {children(node).length > 0 && (
        <ul className={css.tree}>
          {children(node).map((c, i) => (
            <Branch key={i} node={c} {...rest} />
          ))}
        </ul>
      )}
    </li>
  );
}

/** What the editor says of a function, which it has with it. */
function useFunctionDoc(node: Node, on: boolean): string | undefined {
  const { data } = useQuery({
    queryKey: ["functions"],
    queryFn: async () => {
      const { functionIdentifierTerms } = await import("@prometheus-io/codemirror-promql/dist/esm/complete/promql.terms");
      return Object.fromEntries(functionIdentifierTerms.map((t) => [t.label, typeof t.info === "string" ? t.info : undefined]));
    },
    enabled: on && node.type === "call",
    staleTime: Number.POSITIVE_INFINITY,
  });
  return node.type === "call" ? data?.[node.func.name] : undefined;
}

function Count({ node, moment, run }: { node: Node; moment: number | null; run: number }) {
  const expr = countExpr(node);
  const { data, error } = useQuery<{ n: number; took: number }, ApiError>({
    queryKey: ["count", expr, moment, run],
    queryFn: async ({ signal }) => {
      const began = performance.now();
      const params = { query: expr!, time: (moment ?? Date.now()) / 1000 };
      const { data } = await requestPrometheus<{ result: Series[] }>("query", { params, signal });
      return { n: Number(data.result[0]?.value?.[1] ?? 0), took: performance.now() - began };
    },
    enabled: expr !== null,
    staleTime: Number.POSITIVE_INFINITY,
    gcTime: 60_000,
    refetchOnWindowFocus: false,
  });
  if (expr === null) return null;
  if (error) return <span style={{ color: "var(--bad)", overflowWrap: "anywhere" }}>{error.message}</span>;
  if (!data) return <span className={css.hint}>…</span>;
  return (
    <>
      {data.n === 0 ? <State kind="warn">no series</State> : <State kind="quiet">{plural(data.n, "series", "series")}</State>}
      <span className={css.hint}>{humanDuration(Math.max(1, Math.round(data.took)))}</span>
    </>
  );
}
