import { ActionIcon, Menu } from "@mantine/core";
import { IconBellRinging, IconInbox } from "@tabler/icons-react";
import { Time } from "../components/Time";
import { plural } from "../lib/format";
import { useNotifications } from "./notifications";
import css from "./shell.module.css";

/** What the server tells: loud only while there is something. */
export function Bell() {
  const list = useNotifications();
  const label = list.length === 0 ? "No messages of the server" : plural(list.length, "message of the server", "messages of the server");
  return (
    <>
      <Menu position="bottom-end" width={320}>
        <Menu.Target>
          <ActionIcon variant="default" size={30} aria-label={label} className={list.length > 0 ? css.ringing : undefined}>
            {list.length > 0 ? <IconBellRinging size={17} stroke={1.8} /> : <IconInbox size={17} stroke={1.6} />}
          </ActionIcon>
        </Menu.Target>
        <Menu.Dropdown>
          <Menu.Label>Messages of the server</Menu.Label>
          {list.length === 0 && <Menu.Item disabled>There are none.</Menu.Item>}
          {list.map((n) => (
            <Menu.Item key={n.text} component="div">
              {n.text}
              <br />
              <small>
                since <Time at={n.date} />
              </small>
            </Menu.Item>
          ))}
        </Menu.Dropdown>
      </Menu>
      <span role="status" className={css.heard}>
        {list.map((n) => n.text).join(" ")}
      </span>
    </>
  );
}
