import { Skeleton, Stack } from "@mantine/core";
import type { UseQueryResult } from "@tanstack/react-query";
import type { ReactNode } from "react";
import { type ApiError, distinct } from "../api/client";
import { Notice } from "./Notice";

/** Shows what a question was answered with; before that a skeleton, and an error in the server's words above what was there before. */
export function Loaded<T>({
  query,
  children,
  skeleton,
}: {
  query: UseQueryResult<T, ApiError>;
  children: (data: T) => ReactNode;
  skeleton?: ReactNode;
}) {
  if (query.data === undefined) {
    if (query.error) return <Failure error={query.error} />;
    return (
      skeleton ?? (
        <Stack gap="xs" aria-busy="true" aria-label="Loading">
          <Skeleton height={32} />
          <Skeleton height={32} />
          <Skeleton height={32} width="70%" />
        </Stack>
      )
    );
  }
  return (
    <>
      {query.error && (
        <Stack mb="sm">
          <Failure error={query.error} stale />
        </Stack>
      )}
      {children(query.data)}
    </>
  );
}

export function Failure({ error, stale }: { error: Error; stale?: boolean }) {
  return (
    <Notice kind="bad" title={stale ? "Could not be refreshed; this is what was there before" : undefined}>
      {error.message}
    </Notice>
  );
}

/** What went wrong beside a question whose own error is shown below. */
export function Failures({ errors, below }: { errors: (Error | null | false)[]; below: Error | null }) {
  return distinct(errors, below).map((e) => <Failure key={e.message} error={e} />);
}
