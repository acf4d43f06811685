// Asking what a panel shows, with what came beside it: warnings and figures of the query.

import { keepPreviousData, type UseQueryResult, useQuery } from "@tanstack/react-query";
import { type Answer, type ApiError, type Params, requestPrometheus } from "../../api/client";
import { parseMatrix } from "./matrix";
import type { Sample, Series } from "./series";

export interface Stats {
  timings?: {
    evalTotalTime?: number;
    execQueueTime?: number;
    execTotalTime?: number;
    queryPreparationTime?: number;
    resultSortTime?: number;
  };
  samples?: { totalQueryableSamples?: number; peakSamples?: number };
}

export type QueryData = ({ resultType: "vector" | "matrix"; result: Series[] } | { resultType: "scalar" | "string"; result: Sample }) & {
  stats?: Stats;
};

export interface Asked extends Answer<QueryData> {
  /** Milliseconds until the answer was there. */
  took: number;
  start: number;
  end: number;
  step: number;
}

interface Question {
  path: "query" | "query_range";
  expr: string;
  /** Milliseconds; null = now. */
  end: number | null;
  range: number;
  step: number;
  /** Changes when it is to be asked again. */
  run: number;
  enabled?: boolean;
}

export function useAsk({ path, expr, end, range, step, run, enabled = true }: Question): UseQueryResult<Asked, ApiError> {
  return useQuery<Asked, ApiError>({
    queryKey: [path, expr, end, range, step, run],
    queryFn: async ({ signal }) => {
      const began = performance.now();
      let to = end ?? Date.now();
      // On multiples of the step, so that points do not wander when it is asked again.
      if (path === "query_range" && end === null) to = Math.floor(to / step) * step;
      const params: Params =
        path === "query"
          ? { query: expr, time: to / 1000, stats: "all" }
          : { query: expr, start: (to - range) / 1000, end: to / 1000, step: step / 1000, stats: "all" };
      const parse = path === "query_range" ? parseMatrix : undefined;
      const answer = await requestPrometheus<QueryData>(path, { params, signal, parse });
      return { ...answer, took: performance.now() - began, start: to - range, end: to, step };
    },
    enabled: enabled && expr.trim() !== "",
    staleTime: Number.POSITIVE_INFINITY,
    gcTime: 60_000,
    refetchOnWindowFocus: false,
    placeholderData: keepPreviousData,
    structuralSharing: false, // Comparing all samples would cost more than drawing them.
  });
}

export function seriesOf(d: QueryData): Series[] {
  return d.resultType === "vector" || d.resultType === "matrix" ? (d.result as Series[]) : [];
}
