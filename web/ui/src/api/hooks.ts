// The client as hooks: one cache for all pages, so that going back shows what was there while it is asked for anew.

import { keepPreviousData, QueryClient, type UseQueryResult, useQuery } from "@tanstack/react-query";
import { type Answer, ApiError, type Params, requestJSON, requestPrometheus } from "./client";

export const queryClient = new QueryClient({
  defaultOptions: {
    queries: {
      // The server knows best whether asking again helps; only silence is worth a second try.
      retry: (count, err) => count < 1 && err instanceof ApiError && err.status === 0,
      refetchOnWindowFocus: true,
      staleTime: 2000,
      placeholderData: keepPreviousData, // no flicker
    },
  },
});

export interface Options {
  params?: Params;
  /** Milliseconds between refreshes; pages in the background do not ask. */
  refresh?: number;
  enabled?: boolean;
  /** So much that comparing it with what was there before costs more than showing it anew. */
  large?: boolean;
}

/** GET /api/v1/<path>, in Prometheus's envelope. */
export function usePrometheus<T>(path: string, { params, refresh, enabled, large }: Options = {}): UseQueryResult<Answer<T>, ApiError> {
  return useQuery<Answer<T>, ApiError>({
    queryKey: ["prometheus", path, params ?? {}],
    queryFn: ({ signal }) => requestPrometheus<T>(path, { params, signal }),
    refetchInterval: refresh ?? false,
    enabled: enabled ?? true,
    structuralSharing: !large,
  });
}

/** GET <path> without an envelope: api/tocsin/v1/…, alertmanager/api/v2/…, version. */
export function useJSON<T>(path: string, { params, refresh, enabled }: Options = {}): UseQueryResult<T, ApiError> {
  return useQuery<T, ApiError>({
    queryKey: ["json", path, params ?? {}],
    queryFn: ({ signal }) => requestJSON<T>(path, { params, signal }),
    refetchInterval: refresh ?? false,
    enabled: enabled ?? true,
  });
}
