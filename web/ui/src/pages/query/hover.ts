// What the pointer rests on in an expression: what a function does, what a metric is.

import { syntaxTree } from "@codemirror/language";
import type { EditorState } from "@codemirror/state";
import { hoverTooltip } from "@codemirror/view";
import {
  aggregateOpModifierTerms,
  aggregateOpTerms,
  atModifierTerms,
  binOpModifierTerms,
  functionIdentifierTerms,
} from "@prometheus-io/codemirror-promql/dist/esm/complete/promql.terms";
import { requestPrometheus } from "../../api/client";

const terms = [...functionIdentifierTerms, ...aggregateOpTerms, ...aggregateOpModifierTerms, ...binOpModifierTerms, ...atModifierTerms];

export interface Pointed {
  from: number;
  to: number;
  name: string;
  /** What its completion says too, "" for a metric, which the server knows of. */
  help: string;
}

/** The word of PromQL, or the metric, at a place; null for everything else. */
export function pointedAt(state: EditorState, pos: number, side: -1 | 0 | 1): Pointed | null {
  const node = syntaxTree(state).resolveInner(pos, side);
  if (node.firstChild) return null;
  const { from, to } = node;
  const name = state.sliceDoc(from, to);
  if (node.name === "Identifier") return node.parent?.name === "VectorSelector" ? { from, to, name, help: "" } : null;
  if (node.name === "LabelName" || node.name === "StringLiteral") return null;
  const term = terms.find((t) => t.label === name.toLowerCase());
  return term ? { from, to, name, help: term.info } : null;
}

type Metadata = Record<string, { type: string; help: string }[]>;

async function metricHelp(metric: string): Promise<string> {
  // Of a classic histogram and of a summary, only the whole has a description.
  for (const name of new Set([metric, metric.replace(/_(bucket|count|sum|total)$/, "")])) {
    const known = (await requestPrometheus<Metadata>("metadata", { params: { metric: name, limit_per_metric: 1 } })).data[name]?.[0];
    if (known) return `${known.type}: ${known.help}`;
  }
  return "";
}

export const hoverHelp = hoverTooltip(async (view, pos, side) => {
  const at = pointedAt(view.state, pos, side);
  if (!at) return null;
  // Without an answer there is no help; whoever runs the query is told what is wrong.
  const text = at.help || (await metricHelp(at.name).catch(() => ""));
  if (!text) return null;
  return {
    pos: at.from,
    end: at.to,
    above: true,
    create: () => {
      const dom = document.createElement("div");
      dom.className = "cm-hover";
      const name = dom.appendChild(document.createElement("strong"));
      name.textContent = at.name;
      dom.append(` ${text}`);
      return { dom };
    },
  };
});
