= files/move-agent.sh
